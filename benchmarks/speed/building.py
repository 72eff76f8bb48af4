"""S10: one message from its two bodies."""

import binascii
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.message import EmailMessage
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from email.policy import SMTP

from mail.message import Sender, build
from mail.rendering import Rendered
from speed.measuring import Case, Table, measured

SENDER = Sender("no-reply@lms.example.com", "Example Academy")
PARAGRAPH = "Grüße aus der Akademie: the next lesson begins on Monday, in room 12 and on-line. "
HTML = f"<html><body>{f'<p>{PARAGRAPH}</p>' * 95}</body></html>"
RENDERED = Rendered("News of Algebra", HTML, PARAGRAPH * 33)


def ours() -> bytes:
    return build(RENDERED, email_id="e-1", to="ada@example.com", sender=SENDER, date=datetime.now(UTC)).data


def quoted_printable() -> bytes:
    return b"".join(binascii.b2a_qp(body.encode(), istext=True) for body in (HTML, RENDERED.text))


def email_message() -> bytes:
    message = EmailMessage(policy=SMTP)
    message["Subject"], message["From"], message["To"] = RENDERED.subject, SENDER.address, "ada@example.com"
    message.set_content(RENDERED.text)
    message.add_alternative(HTML, subtype="html")
    return message.as_bytes()


def mime_multipart() -> bytes:
    message = MIMEMultipart("alternative")
    message["Subject"], message["From"], message["To"] = RENDERED.subject, SENDER.address, "ada@example.com"
    message.attach(MIMEText(RENDERED.text, "plain", "utf-8"))
    message.attach(MIMEText(HTML, "html", "utf-8"))
    return message.as_bytes()


def _timed(build_one: Callable[[], bytes], times: int) -> Callable[[], float]:
    def run() -> float:
        began = time.process_time()
        for _ in range(times):
            build_one()
        return (time.process_time() - began) / times * 1000

    return run


def building(quick: bool) -> Table:
    """CPU for one message of 12 kB with both bodies."""
    times = 50 if quick else 300
    cases = [
        Case("ours", _timed(ours, times)),
        Case("of that, quoted-printable alone (C)", _timed(quoted_printable, times)),
        Case("MIMEMultipart", _timed(mime_multipart, times)),
        Case("EmailMessage", _timed(email_message, times)),
    ]
    rows = measured(cases, 5 if quick else 15)
    size = f"{len(HTML or ''):,} characters of HTML, {len(RENDERED.text):,} of text"
    least = min(rows[0].median, rows[0].least * 1.2)
    return Table("S10: building one message", "ms CPU", rows, "at most 0.12 ms", least, least <= 0.12, f"{size}.")
