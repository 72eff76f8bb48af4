"""Development only: the local stack and the SMTP inbox. Production imports nothing from here."""
