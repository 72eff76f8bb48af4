"""What people import: `utils.email` (direct forms) and `utils.email_async` (queued forms)."""
