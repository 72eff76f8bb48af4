"""Encryption of secret fields, so that Redis, its append-only file and its backups hold no credential in clear."""

import json
from collections.abc import Sequence

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from mail.errors import ConfigurationError


class SecretLost(Exception):
    """None of the keys opens this secret: a key was removed from OUTBOX_KEYS while mails still needed it."""


class Vault:
    """Seals and opens the secret fields of an email.

    Args:
        keys: Fernet keys (32 bytes, url-safe base64), newest first: the first seals, all open.

    Raises:
        ConfigurationError: no key, or a malformed one.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        try:
            self._fernet = MultiFernet([Fernet(key) for key in keys])
        except ValueError:
            raise ConfigurationError(
                "OUTBOX_KEYS: each key must be 32 bytes in url-safe base64; make one with: "
                'python -c "from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())"'
            ) from None

    def seal(self, fields: dict[str, str]) -> str:
        """Encrypt the secret fields of one email."""
        return self._fernet.encrypt(json.dumps(fields).encode()).decode()

    def open(self, sealed: str) -> dict[str, str]:
        """Decrypt them again.

        Raises:
            SecretLost: no key fits.
        """
        try:
            fields: dict[str, str] = json.loads(self._fernet.decrypt(sealed))
        except InvalidToken:
            raise SecretLost("no key in OUTBOX_KEYS opens the secret of this email") from None
        return fields
