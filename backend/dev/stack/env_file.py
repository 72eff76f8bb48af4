"""The development `.env`: what every other terminal needs to work with the stack."""

import os
import secrets
from pathlib import Path

from cryptography.fernet import Fernet

TEMPLATE = """\
# Written by ./start.sh for development and never overwritten. Environment variables win over this file.
ENVIRONMENT=development

# Redis: the outbox and Celery's broker. ./start.sh starts one at this address when none answers there.
REDIS_URL=redis://127.0.0.1:6390/0

# The SMTP server. ./start.sh starts an inbox at this address when nothing answers there.
SMTP_HOST=127.0.0.1
SMTP_PORT=1025
SMTP_USERNAME=
SMTP_PASSWORD=
SMTP_MAIL_FROM=no-reply@lms.test
SMTP_FROM_NAME="Example Academy"

# Who may call the HTTP API (name:scopes:key), and what encrypts the secret fields of stored mails.
API_KEYS=dev:send+custom+bulk+read+admin:{api_key}
OUTBOX_KEYS={outbox_key}

# Where things listen: the HTTP API, Flower, the web page of the inbox.
API_PORT=8000
FLOWER_PORT=5555
INBOX_PORT=8025
"""


def ensure_env_file(path: Path) -> bool:
    """Write `path` with fresh keys, readable by its owner only, unless there is one; tell whether it did."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return False
    with open(descriptor, "w") as file:
        file.write(TEMPLATE.format(api_key=secrets.token_hex(24), outbox_key=Fernet.generate_key().decode()))
    return True
