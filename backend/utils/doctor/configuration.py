"""The settings: can they be read, do they fit together, are the keys worth their name?"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from itertools import combinations

from env_file import read_env_file, shown
from mail.errors import ConfigurationError
from mail.findings import Finding, Level
from mail.smtp_session import is_local
from settings import ENV_FILE, KEY_FILE, Scope, Settings, get_settings
from utils.composition import get_brand

BITS = 64  # of a key; what `openssl rand -hex 24` gives has 170 by this measure
SHORTEST_KEY = 24  # characters
BY_HAND = re.compile(r"change.?me|password|secret|example|12345678", re.IGNORECASE)
NEW_KEY = "Make one with: openssl rand -hex 24"


def read_settings() -> tuple[Settings | None, list[Finding]]:
    """The settings, or None, and what is to be said about them; never a value that is secret."""
    try:
        settings = get_settings()
        remarks = read_env_file(ENV_FILE, list(_names())).remarks if ENV_FILE.exists() else []
    except ConfigurationError as error:
        fix = "Correct it; backend/.env.example has every setting with a comment"
        lines = str(error).removeprefix("Wrong settings:").strip().splitlines()
        return None, [Finding("settings", Level.FAULT, line.strip(), fix) for line in lines]
    source = shown(ENV_FILE) if ENV_FILE.is_file() else f"no {shown(ENV_FILE)}"
    ok = Finding("settings", Level.OK, f"{settings.environment}; the environment, then {source}")
    odd = [Finding("settings", Level.WARNING, remark, "Correct or remove the line") for remark in remarks]
    return settings, [ok, *odd]


def advice(settings: Settings) -> Iterator[Finding]:
    """Settings that are allowed, and rarely meant so."""
    warnings = _development(settings) if settings.development else _production(settings)
    for name, text, fix in warnings:
        yield Finding(f"settings.{name}", Level.WARNING, text, fix)
    if settings.cors_origins:
        text = "CORS_ORIGINS is set: pages may call the API, and a browser must never hold a send key"
        yield Finding("settings.cors", Level.WARNING, text, "Empty it; the LMS's server calls the API")
    if notice := get_brand().notice:
        yield Finding("settings.color", Level.WARNING, notice, "Choose another colour, or leave it")


def api_keys(settings: Settings) -> Iterator[Finding]:
    """How hard the keys of the API are to guess, and what they open."""
    name, grave = "keys.api", Level.WARNING if settings.development else Level.FAULT
    keys = settings.keys_in_clear
    findings = [
        Finding(name, grave, f"the key of {caller.name} is weak: {why}", NEW_KEY)
        for caller, key in keys
        if (why := weakness(key))
    ]
    findings += [
        Finding(name, Level.FAULT, f"{one.name} and {other.name} have the same key; {other.name} counts", NEW_KEY)
        for (one, key), (other, again) in combinations(keys, 2)
        if key == again
    ]
    if not settings.development:
        findings += [
            Finding(name, Level.WARNING, f"the key of {caller.name} may do everything", "A key for each caller")
            for caller, _ in keys
            if caller.scopes == set(Scope)
        ]
    if not keys:
        fix = "API_KEYS=dev:send+custom+bulk+read+admin:<key>. " + NEW_KEY
        findings = [Finding(name, Level.WARNING, "no API_KEYS: the API answers every call with 401", fix)]
    yield from findings or [Finding(name, Level.OK, f"{len(keys)}: {', '.join(key.name for key, _ in keys)}")]


def outbox_keys(settings: Settings) -> Iterator[Finding]:
    """The keys that seal secrets; the settings have checked their form."""
    name, keys = "keys.outbox", settings.outbox_key_list
    if not keys:
        text = (
            f"{shown(KEY_FILE)}, made in development" if KEY_FILE.exists() else "the first program to start makes one"
        )
        yield Finding(name, Level.OK, text)
    elif len(set(keys)) < len(keys):
        yield Finding(name, Level.WARNING, "OUTBOX_KEYS holds the same key twice", "Remove one")
    elif len(keys) > 1:
        text = f"{len(keys)} keys: the first seals, the others only open"
        yield Finding(name, Level.OK, text, "Remove old ones once nothing they sealed waits (docs/operations.md)")
    else:
        yield Finding(name, Level.OK, "one key")


def weakness(key: str) -> str | None:
    """Why a key could be guessed, if it could: its characters, as often as each comes, carry too few bits."""
    if BY_HAND.search(key):
        return "it looks made up by hand"
    if len(key) < SHORTEST_KEY:
        return f"it has fewer than {SHORTEST_KEY} characters"
    shares = [count / len(key) for count in Counter(key).values()]
    period = (key + key).find(key, 1)  # its length, or that of the part it repeats
    if -sum(share * math.log2(share) for share in shares) * period < BITS:
        return "it repeats itself"
    return None


def _development(settings: Settings) -> Iterator[tuple[str, str, str]]:
    if not is_local(settings.smtp_host) and not settings.mail_redirect_to:
        yield (
            "env",
            f"ENVIRONMENT is development, and mail goes out through {settings.smtp_host}",
            "ENVIRONMENT=production, which guards keys and links; or MAIL_REDIRECT_TO=you@example.com",
        )


def _production(settings: Settings) -> Iterator[tuple[str, str, str]]:
    unset = {name.upper() for name in _NEEDED if name not in settings.model_fields_set}
    if brand := sorted(name for name in unset if name.startswith("BRAND_")):
        text = f"{', '.join(brand)} not set: mails are those of an example school"
        yield "brand", text, "Set them; .env.example says what each is"
    if "SMTP_HOST" in unset:
        text = f"SMTP_HOST not set: mail goes to {settings.smtp_host} port {settings.smtp_port}"
        yield "smtp", text, "Set it to your provider's host"
    if settings.environment == "production" and settings.mail_redirect_to:
        text = f"MAIL_REDIRECT_TO: all mail goes to {settings.mail_redirect_to}, none to its recipient"
        yield "redirect", text, "Empty it in production"


_NEEDED = ("smtp_host", "brand_name", "brand_url", "brand_support_email")


def _names() -> Iterator[str]:
    return (name.upper() for name in Settings.model_fields)
