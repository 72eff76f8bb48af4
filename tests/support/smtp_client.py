"""What the tests of SMTP send, and as whom."""

from collections.abc import Callable

from mail.smtp import Envelope, SmtpTransport

USER = "mailer"
PASSWORD = "p:ä ✓-Secret"
MESSAGE = b"Subject: hello\r\n\r\nHello.\r\n"
ADA = Envelope("noreply@example.com", "ada@example.com")

Connect = Callable[..., SmtpTransport]
"""A server of the test, and any fields of SmtpConfig to change, to a transport that is closed after the test."""
