"""Runs Flower, set up from the service's settings (backend/start_flower.sh).

Everything goes through Flower's own environment variables: a password on the command line is in `ps`.
"""

import errno
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "backend"))

import flower_guard
from celery.__main__ import main as celery

import logs
from mail.errors import ConfigurationError
from settings import get_settings, read_settings


def main() -> None:
    try:
        logs.set_up("flower", read_settings())
        settings = get_settings()
    except ConfigurationError as error:
        sys.exit(str(error))
    auth = settings.flower_basic_auth.get_secret_value()
    os.environ |= {
        "FLOWER_ADDRESS": settings.flower_address,
        "FLOWER_PORT": str(settings.flower_port),
        "FLOWER_READ_ONLY": str(settings.flower_read_only).lower(),
        "FLOWER_BASIC_AUTH": auth,
        "FLOWER_LOGGING": "none",  # else Tornado sets a level of its own
    }
    if not auth:
        flower_guard.install(check_host=settings.development)
        del os.environ["FLOWER_BASIC_AUTH"]  # Flower would take the empty word for a password
        if settings.development:
            os.environ.setdefault("FLOWER_UNAUTHENTICATED_API", "true")
    sys.argv[1:] = ["-A", "celery_app", "flower"]
    try:
        celery()
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        sys.exit(
            f"Flower cannot listen on {settings.flower_address}, port {settings.flower_port}: it is taken. "
            "Set FLOWER_PORT."
        )


if __name__ == "__main__":
    main()
