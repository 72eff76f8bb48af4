"""The SMTP side: takes every mail, unless chaos is asked for, and delivers none."""

import asyncio
import socket

from aiosmtpd.smtp import SMTP, Envelope, Session

from dev.inbox.chaos import Chaos, Fault
from dev.inbox.store import Mail, Store

BACKLOG = 512


class Receiver:
    """What aiosmtpd calls. It takes several recipients per mail, and 8BITMIME and SMTPUTF8 mail."""

    def __init__(self, store: Store, chaos: Chaos) -> None:
        self._store = store
        self._chaos = chaos

    async def handle_EHLO(
        self, _server: SMTP, session: Session, _envelope: Envelope, hostname: str, responses: list[str]
    ) -> list[str]:
        session.host_name = hostname
        # aiosmtpd reads command by command from one buffer, which is all RFC 2920 asks of a server, but does
        # not say so. The last line of a reply has another form (RFC 5321 section 4.2.1), so it stays last.
        return [*responses[:-1], "250-PIPELINING", responses[-1]]

    async def handle_RCPT(
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        refusal = self._chaos.refusal(address)
        if refusal is None:
            envelope.rcpt_tos.append(address)
        return refusal or "250 OK"

    async def handle_DATA(self, server: SMTP, _session: Session, envelope: Envelope) -> str:
        sender = envelope.mail_from or ""
        mail = Mail(
            sender=_printable("" if sender == "<>" else sender),
            recipients=tuple(map(_printable, envelope.rcpt_tos)),
            raw=envelope.original_content or b"",
        )
        if self._chaos.strikes(Fault.DELAY):
            await asyncio.sleep(self._chaos.trouble.seconds)
        self._store.add(mail)
        if self._chaos.strikes(Fault.CUT) and isinstance(server.transport, asyncio.WriteTransport):
            server.transport.abort()
        return f"250 OK id={mail.id}"


def _printable(address: str) -> str:
    """aiosmtpd hands out bytes that are no UTF-8 as lone surrogates, which JSON cannot carry."""
    return address.encode("utf-8", "replace").decode()


async def start(store: Store, chaos: Chaos, listener: socket.socket, max_message_bytes: int) -> asyncio.Server:
    """Serve SMTP on a bound socket. A mail over `max_message_bytes` is refused with 552 (RFC 1870)."""
    loop = asyncio.get_running_loop()
    receiver = Receiver(store, chaos)
    return await loop.create_server(
        lambda: SMTP(
            receiver,
            data_size_limit=max_message_bytes,
            enable_SMTPUTF8=True,
            hostname="localhost",  # without it aiosmtpd asks the DNS at every connection, blocking the loop
            ident="development inbox",
            loop=loop,
        ),
        sock=listener,
        backlog=BACKLOG,
    )
