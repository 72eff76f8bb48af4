"""MAIL, RCPT and DATA in one flight (RFC 2920): what it saves, and that nothing else changes."""

import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

from mail.errors import DeliveryError, OutcomeUnknown, PermanentError, ServerBusy, TransientError
from mail.smtp import Envelope, Mail, SmtpConfig, SmtpTransport
from support.smtp_server import SmtpServer
from support.smtp_sink import smtp_sink

Connect = Callable[..., SmtpTransport]

NOTHING = b"\0"
"""The answer of a server that waits for more."""
MESSAGE = b"Subject: hello\r\n\r\nbody\r\n"


def envelope(to: str = "ada@example.com") -> Envelope:
    return Envelope("noreply@example.com", to)


class Listener:
    """A server that answers each packet as a whole, and notes what was in it: one entry is one flight."""

    def __init__(self, answer: Callable[[bytes], bytes], features: str = "PIPELINING") -> None:
        self.flights: list[bytes] = []
        self.connections = 0
        self._answer = answer
        self._greeting = f"250-test.invalid\r\n250 {features}\r\n".encode()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> "Listener":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # shutdown, for close alone does not wake accept
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            with connection:
                connection.sendall(b"220 test.invalid\r\n")
                while flight := connection.recv(65_536):
                    if flight[:4].upper() == b"EHLO":
                        connection.sendall(self._greeting)
                        continue
                    self.flights.append(flight)
                    if flight.startswith(b"QUIT") or not (answer := self._answer(flight)):
                        break
                    connection.sendall(answer.replace(NOTHING, b""))


def replies_to(flight: bytes, **other: bytes) -> bytes:
    """What a server says to each of these commands, as in `MAIL=b"550 no\\r\\n"`."""
    if flight.endswith(b"\r\n.\r\n"):
        return b"250 taken\r\n"
    usual = {"MAIL": b"250 ok\r\n", "RCPT": b"250 ok\r\n", "DATA": b"354 go on\r\n", "RSET": b"250 ok\r\n"}
    words = [line[:4].decode() for line in flight.splitlines()]
    return b"".join((usual | other).get(word, b"554 no valid recipients\r\n") for word in words)


def transport_to(port: int, **changes: Any) -> SmtpTransport:
    return SmtpTransport(SmtpConfig(host="127.0.0.1", port=port, **{"timeout": 1.0, **changes}))


def test_a_mail_is_two_flights() -> None:
    with Listener(replies_to) as server:
        transport = transport_to(server.port)
        for _ in range(3):
            assert transport.send(envelope(), MESSAGE).code == 250
        transport.close()
        assert server.connections == 1
    words = [[line[:4] for line in flight.splitlines()] for flight in server.flights[:6:2]]
    assert words == [[b"MAIL", b"RCPT", b"DATA"]] * 3
    assert server.flights[1:6:2] == [MESSAGE + b".\r\n"] * 3


def test_step_by_step_where_it_is_not_offered() -> None:
    with Listener(replies_to, features="8BITMIME") as server:
        transport = transport_to(server.port)
        assert transport.send(envelope(), MESSAGE).code == 250
        transport.close()
    assert [flight[:4] for flight in server.flights[:3]] == [b"MAIL", b"RCPT", b"DATA"]


def test_a_refusal_costs_only_its_own_mail(server: SmtpServer, connect: Connect) -> None:
    transport = connect(server)
    server.reply("rcpt", "550 5.1.1 no such user", when=lambda to: to.startswith("bob"))
    for name in ("ada", "bob", "eve", "bob", "ida"):
        if name == "bob":
            with pytest.raises(PermanentError, match="answered RCPT with 550"):
                transport.send(envelope("bob@example.com"), MESSAGE)
        else:
            transport.send(envelope(f"{name}@example.com"), MESSAGE)
    assert [one.recipients for one in server.messages] == [(f"{n}@example.com",) for n in ("ada", "eve", "ida")]
    assert server.connections == 1


@pytest.mark.parametrize("dot", [b"554 5.5.1 no valid recipients\r\n", b"503 5.5.1 nobody\r\n"])
def test_a_server_that_wants_a_mail_for_nobody_gets_an_empty_one(dot: bytes) -> None:
    """RFC 2920 section 3.1: 354 may come although every recipient was refused."""

    def answer(flight: bytes) -> bytes:
        if flight == b".\r\n":
            return dot
        return replies_to(flight, **({"RCPT": b"550 5.1.1 no\r\n"} if b"bob@" in flight else {}))

    with Listener(answer) as server:
        transport = transport_to(server.port)
        with pytest.raises(PermanentError, match=r"answered RCPT with 550 5\.1\.1 no"):
            transport.send(envelope("bob@example.com"), MESSAGE)
        assert transport.send(envelope(), MESSAGE).code == 250
        transport.close()
        assert server.connections == 1
    assert server.flights[1] == b".\r\n"


def test_no_empty_mail_where_the_recipient_was_accepted() -> None:
    with Listener(lambda flight: replies_to(flight, MAIL=b"550 5.7.1 no\r\n")) as server:
        transport = transport_to(server.port)
        with pytest.raises(DeliveryError, match="answered MAIL with 550"):
            transport.send(envelope(), MESSAGE)
        transport.close()
    assert b".\r\n" not in server.flights
    assert not [flight for flight in server.flights if b"hello" in flight]


def loses_all_but_the_first(flight: bytes) -> bytes:
    """A server that throws away what came with a command."""
    first = flight if flight.endswith(b".\r\n") else flight.splitlines(keepends=True)[0]
    return replies_to(first)


def takes_it_for_one_line(flight: bytes) -> bytes:
    single = flight.count(b"\r\n") == 1 or flight.endswith(b".\r\n")
    return replies_to(flight) if single else b"501 5.5.4 what\r\n" * 3


def calls_it_improper(flight: bytes) -> bytes:
    if flight.count(b"\r\n") == 1 or flight.endswith(b".\r\n"):
        return replies_to(flight)
    return b"250 ok\r\n503 5.5.0 improper use of pipelining\r\n503 5.5.0 again\r\n"


@pytest.mark.parametrize(
    ("answer", "doubts"),
    [(takes_it_for_one_line, 1), (calls_it_improper, 1), (loses_all_but_the_first, 2)],
)
def test_a_server_that_cannot_do_it_is_remembered(answer: Callable[[bytes], bytes], doubts: int) -> None:
    with Listener(answer) as server:
        transport = transport_to(server.port, timeout=0.3)
        for _ in range(5):
            assert transport.send(envelope(), MESSAGE).code == 250
            transport.trim(0)  # the connection of the last mail does without
        transport.close()
    flights = [flight for flight in server.flights if flight.startswith(b"MAIL") and b"RCPT" in flight]
    assert len(flights) == doubts
    assert server.flights.count(MESSAGE + b".\r\n") == 5


def test_a_line_that_breaks_now_and_then_is_chance() -> None:
    flights = 0

    def answer(flight: bytes) -> bytes:
        nonlocal flights
        flights += flight.startswith(b"MAIL") and b"RCPT" in flight
        broken = flights % 2 and flight.startswith(b"MAIL") and b"RCPT" in flight
        return b"250 ok\r\n" if broken else replies_to(flight)

    with Listener(answer) as server:
        transport = transport_to(server.port, timeout=0.3)
        for _ in range(6):
            assert transport.send(envelope(), MESSAGE).code == 250
            transport.trim(0)
        transport.close()
    assert flights == 6


def test_what_is_refused_step_by_step_too_is_refused(server: SmtpServer, connect: Connect) -> None:
    transport = connect(server)
    server.cut("rcpt")
    for _ in range(3):
        with pytest.raises(TransientError):
            transport.send(envelope(), MESSAGE)
    server.clear()
    transport.send(envelope(), MESSAGE)
    assert len(server.messages) == 1


@pytest.mark.parametrize("options", [(), ("-p",), ("-8",)], ids=["as it is", "no PIPELINING", "no 8BITMIME"])
def test_postfix_takes_it(options: tuple[str, ...]) -> None:
    with smtp_sink(*options) as port:
        transport = transport_to(port)
        for number in range(250):
            assert transport.send(envelope(f"p{number}@example.com"), MESSAGE).code == 250
        transport.close()


@pytest.mark.parametrize("option", ["-r", "-f"])  # 4xx and 5xx
def test_postfix_refuses(option: str) -> None:
    with smtp_sink(option, "RCPT") as port:
        transport = transport_to(port)
        for _ in range(3):
            with pytest.raises(DeliveryError) as caught:
                transport.send(envelope(), MESSAGE)
            assert caught.value.stage == "rcpt"
        transport.close()


class TestChains:
    """The flight of the next mail travels with the message before it."""

    @staticmethod
    def mails(*names: str) -> list[Mail]:
        return [Mail(envelope(f"{one}@example.com"), MESSAGE.replace(b"body", one.encode())) for one in names]

    @staticmethod
    def send(transport: SmtpTransport, mails: list[Mail]) -> list[int | DeliveryError]:
        """Each with its reply, as EmailService.deliver_many sends them."""
        found: list[int | DeliveryError] = []
        with transport.chain() as chain:
            for at, mail in enumerate(mails):
                try:
                    found.append(chain.send(mail, mails[at + 1] if at + 1 < len(mails) else None).code)
                except DeliveryError as error:
                    found.append(error)
        return found

    @staticmethod
    def arrived(server: SmtpServer) -> list[str]:
        for one in server.messages:
            assert one.data.partition(b"\r\n\r\n")[2].strip().decode() == one.recipients[0].partition("@")[0]
        return [one.recipients[0].partition("@")[0] for one in server.messages]

    def test_in_order_over_one_connection(self, server: SmtpServer, connect: Connect) -> None:
        names = [f"p{number}" for number in range(20)]
        transport = connect(server)
        assert self.send(transport, self.mails(*names)) == [250] * 20
        assert self.arrived(server) == names
        transport.send(envelope(), MESSAGE)
        assert server.connections == 1
        assert "RSET" not in server.verbs()

    def test_what_is_announced_is_sent_before_the_reply(self) -> None:
        """The server holds its reply to the first message back until it has the next announcement."""
        seen = b""

        def answer(packet: bytes) -> bytes:
            nonlocal seen
            seen += packet
            if seen.endswith(b"DATA\r\n"):
                before = b"250 taken\r\n" if b"\r\n.\r\n" in seen else b""
                return before + b"250 ok\r\n250 ok\r\n354 go on\r\n"
            return b"250 taken\r\n" if seen.count(b"\r\n.\r\n") == 2 else NOTHING

        with Listener(answer) as server:
            transport = transport_to(server.port)
            assert self.send(transport, self.mails("ada", "bob")) == [250, 250]
            transport.close()

    @pytest.mark.parametrize("stage", ["rcpt", "dot"])
    def test_a_refusal_in_the_middle_costs_only_its_own(
        self, server: SmtpServer, connect: Connect, stage: Any
    ) -> None:
        server.reply(stage, "550 5.1.1 no", when=lambda to: to.startswith(("bob", "dan")))
        found = self.send(connect(server), self.mails("ada", "bob", "cyd", "dan", "eve"))
        assert [one if isinstance(one, int) else one.code for one in found] == [250, 550, 250, 550, 250]
        assert all(isinstance(one, int | PermanentError) for one in found)
        assert self.arrived(server) == ["ada", "cyd", "eve"]
        assert server.connections == 1

    @pytest.mark.parametrize("stage", ["mail", "rcpt", "data", "dot"])
    def test_a_busy_server(self, server: SmtpServer, connect: Connect, stage: Any) -> None:
        bob = (lambda to: to.startswith("bob")) if stage != "mail" else None
        server.reply(stage, "421 4.7.0 slow down", times=1, when=bob)
        found = self.send(connect(server), self.mails("ada", "bob", "cyd"))
        refused = [one for one in found if not isinstance(one, int)]
        assert len(refused) <= 1
        assert all(isinstance(one, ServerBusy) for one in refused)
        assert len(self.arrived(server)) == 3 - len(refused)
        assert server.connections == 2

    @pytest.mark.parametrize(("stage", "taken"), [("dot-before-store", False), ("dot-after-store", True)])
    def test_a_line_that_breaks_at_the_reply(
        self, server: SmtpServer, connect: Connect, stage: Any, taken: bool
    ) -> None:
        server.cut(stage, times=1, when=lambda to: to.startswith("bob"))
        found = self.send(connect(server), self.mails("ada", "bob", "cyd"))
        assert (found[0], type(found[1]), found[2]) == (250, OutcomeUnknown, 250)
        assert self.arrived(server) == ["ada", "bob", "cyd"] if taken else ["ada", "cyd"]

    def test_an_announcement_that_nothing_follows(self, server: SmtpServer, connect: Connect) -> None:
        transport = connect(server)
        ada, bob = self.mails("ada", "bob")
        with transport.chain() as chain:
            assert chain.send(ada, bob).code == 250
        transport.send(*bob)
        assert self.arrived(server) == ["ada", "bob"]
        assert server.connections == 2

    def test_another_one_than_was_announced(self, server: SmtpServer, connect: Connect) -> None:
        transport = connect(server)
        ada, bob, cyd = self.mails("ada", "bob", "cyd")
        with transport.chain() as chain:
            assert [chain.send(ada, bob).code, chain.send(cyd).code] == [250, 250]
        assert self.arrived(server) == ["ada", "cyd"]

    def test_a_connection_carries_no_more_than_its_share(self, server: SmtpServer, connect: Connect) -> None:
        names = [f"p{number}" for number in range(10)]
        assert self.send(connect(server, max_messages=3), self.mails(*names)) == [250] * 10
        assert self.arrived(server) == names
        assert server.connections == 4

    def test_where_it_is_not_offered(self, server: SmtpServer, connect: Connect) -> None:
        server.pipelining = False
        assert self.send(connect(server), self.mails("ada", "bob")) == [250, 250]
        assert self.arrived(server) == ["ada", "bob"]
        assert server.connections == 1

    def test_postfix_takes_them(self) -> None:
        with smtp_sink() as port:
            transport = transport_to(port, max_messages=1_000)
            assert self.send(transport, self.mails(*[f"p{number}" for number in range(500)])) == [250] * 500
            transport.close()

    def test_many_threads(self, server: SmtpServer, connect: Connect) -> None:
        transport = connect(server)
        with ThreadPoolExecutor(8) as pool:
            done = list(
                pool.map(
                    lambda thread: self.send(transport, self.mails(*[f"t{thread}n{at}" for at in range(20)])),
                    range(8),
                )
            )
        assert done == [[250] * 20] * 8
        assert sorted(self.arrived(server)) == sorted(f"t{thread}n{at}" for thread in range(8) for at in range(20))
