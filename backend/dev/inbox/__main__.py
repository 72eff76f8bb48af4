"""`python -m dev.inbox`: the inbox as one process, ended by SIGTERM or Ctrl-C."""

import argparse
import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Sequence

import uvicorn

from dev.inbox import smtp, web
from dev.inbox.chaos import Chaos
from dev.inbox.store import Store

MEGABYTE = 1024 * 1024


class CannotListen(Exception):
    """An address cannot be listened on. The message is for the person who chose it."""


class WebServer(uvicorn.Server):
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # uvicorn calls a client that is cut short an error; here it is the promptness that was asked for.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        await super().shutdown(sockets)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    try:
        smtp_listener = _listen(options.smtp_host, options.smtp_port, "--smtp-host", "--smtp-port")
        http_listener = _listen(options.http_host, options.http_port, "--http-host", "--http-port")
    except CannotListen as fault:
        print(f"inbox: {fault}", file=sys.stderr)
        return 1
    # aiosmtpd warns of what clients do wrong; they are told in the reply.
    logging.getLogger("mail.log").setLevel(logging.ERROR)
    asyncio.run(_serve(options, smtp_listener, http_listener))
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m dev.inbox", description="A development mail inbox.")
    parser.add_argument("--smtp-host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--smtp-port", type=_port, default=1025, help="0 takes a free one (%(default)s)")
    parser.add_argument("--http-host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--http-port", type=_port, default=8025, help="0 takes a free one (%(default)s)")
    parser.add_argument("--max-messages", type=_positive, default=1000, help="mails kept (%(default)s)")
    parser.add_argument(
        "--max-bytes", type=_positive, default=256 * MEGABYTE, help="bytes of all mails kept (%(default)s)"
    )
    parser.add_argument(
        "--max-message-bytes", type=_positive, default=25 * MEGABYTE, help="bytes of one mail (%(default)s)"
    )
    parser.add_argument(
        "--framed-by", action="append", default=[], metavar="ORIGIN", help="whose pages may show it in a frame"
    )
    options = parser.parse_args(arguments)
    if options.max_message_bytes > options.max_bytes:
        parser.error("--max-message-bytes must not be larger than --max-bytes")
    return options


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError("a port is between 0 and 65535")
    return port


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _listen(host: str, port: int, host_option: str, port_option: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as fault:
        reason = str(fault.strerror).partition(" (while")[0]  # the rest repeats the address
        raise CannotListen(
            f"cannot listen on {host}, port {port}: {reason} (change {port_option} or {host_option})"
        ) from fault


async def _serve(options: argparse.Namespace, smtp_listener: socket.socket, http_listener: socket.socket) -> None:
    store, chaos = Store(options.max_messages, options.max_bytes), Chaos()
    web_server = WebServer(
        uvicorn.Config(
            web.create_app(store, chaos, options.http_host, smtp_listener.getsockname()[1], options.framed_by),
            lifespan="off",
            log_level="error",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=1,
        )
    )

    def stop() -> None:
        web_server.should_exit = True
        store.close()

    # Once uvicorn has stopped it raises the signal again: these handlers keep that from ending the process by it.
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    smtp_server = await smtp.start(store, chaos, smtp_listener, options.max_message_bytes)
    print(f"inbox: smtp://{_authority(smtp_listener)} http://{_authority(http_listener)}/", flush=True)
    await web_server.serve(sockets=[http_listener])
    smtp_server.close()


def _authority(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


if __name__ == "__main__":
    sys.exit(main())
