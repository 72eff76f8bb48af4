"""The development `.env`: what every other terminal needs to work with the stack."""

import os
import secrets
from pathlib import Path

from cryptography.fernet import Fernet

TEMPLATE = """\
# Settings for development. ./start.sh wrote this file once and never changes it; it is yours now.
# .env.example has every setting with a comment. A variable of the environment wins over its line here.

# development, staging or production. The last two demand more settings, and say which.
ENVIRONMENT=development

# The outbox and Celery's broker. When nothing answers at this address, ./start.sh starts a Redis there.
REDIS_URL=redis://127.0.0.1:6390/0

# The SMTP server. When nothing answers at this address, ./start.sh starts an inbox there that keeps every mail.
SMTP_HOST=127.0.0.1
SMTP_PORT=1025
# Empty: no login.
SMTP_USERNAME=
SMTP_PASSWORD=
# The sender of every mail: address and name.
SMTP_MAIL_FROM=no-reply@lms.test
SMTP_FROM_NAME="Example Academy"

# Who may call the HTTP API, as name:scope+scope:key. The key is what follows the last colon.
API_KEYS=dev:send+custom+bulk+read+admin:{api_key}

# Encrypts the secret fields of stored mails. Without it, mails that wait cannot be sent.
OUTBOX_KEYS={outbox_key}

# Where things listen: the HTTP API, Flower, and the web page of the inbox.
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
