"""The webhook against a real receiver, which checks the signature and may refuse, hang, drip or cut."""

import threading
import time
from pathlib import Path

import pytest

from mail.alerts import NotPosted
from support.processes import free_port, wait_until
from support.receiver import SECRET, Receiver, verify
from support.smtp_server import Authority
from utils import webhook
from utils.webhook import Webhook

BODY = '{"type": "lane.moving", "data": {"lane": "ünïcode"}}'


def test_it_is_signed_and_arrives_as_it_is() -> None:
    with Receiver() as receiver:
        Webhook(receiver.url, SECRET)("msg_1", BODY)
        Webhook(receiver.url, SECRET)("msg_2", BODY)
    first, second = receiver.calls
    for call in (first, second):
        verify(call)
    assert (first.id, first.path, first.body) == ("msg_1", "/hooks/mail?room=7", BODY)
    assert first.headers["webhook-signature"] != second.headers["webhook-signature"]
    with pytest.raises(Exception, match="No matching signature"):
        verify(first, key=b"another key of thirty-two bytes!")


@pytest.mark.parametrize("status", [200, 202, 204])
def test_any_2xx_will_do(status: int) -> None:
    with Receiver(answers=[status]) as receiver:
        Webhook(receiver.url, SECRET)("msg_1", BODY)


@pytest.mark.parametrize("status", [400, 410, 500, 304])
def test_nothing_else_will(status: int) -> None:
    with Receiver(answers=[status]) as receiver, pytest.raises(NotPosted, match=str(status)):
        Webhook(receiver.url, SECRET)("msg_1", BODY)


def test_a_redirect_is_not_followed() -> None:
    with Receiver() as elsewhere, Receiver(answers=[elsewhere.url]) as receiver:
        with pytest.raises(NotPosted, match="307"):
            Webhook(receiver.url, SECRET)("msg_1", BODY)
        assert elsewhere.calls == []


@pytest.mark.parametrize("fault", ["hang", "drip", "cut"])
def test_a_receiver_that_does_not_answer(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "PATIENCE", 0.7)
    with Receiver(answers=[fault]) as receiver:
        begun = time.monotonic()
        with pytest.raises(NotPosted) as caught:
            Webhook(receiver.url, SECRET)("msg_1", BODY)
        assert time.monotonic() - begun < 2
        assert receiver.url not in str(caught.value)
    wait_until(
        lambda: not any(isinstance(thread, threading.Timer) for thread in threading.enumerate()),
        what="the deadline to be called off",
    )


def test_nobody_there() -> None:
    with pytest.raises(NotPosted, match="ConnectionRefusedError"):
        Webhook(f"http://127.0.0.1:{free_port()}", SECRET)("msg_1", BODY)


def test_https_with_a_certificate_that_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority(tmp_path)
    with Receiver(authority.certificate()) as receiver:
        with pytest.raises(NotPosted, match="SSLCertVerificationError"):
            Webhook(receiver.url, SECRET)("msg_1", BODY)
        monkeypatch.setenv("SSL_CERT_FILE", authority.ca_file)
        Webhook(receiver.url, SECRET)("msg_2", BODY)
        monkeypatch.setattr(webhook, "PATIENCE", 0.7)
        receiver.answers[:] = ["drip"]
        with pytest.raises(NotPosted):
            Webhook(receiver.url, SECRET)("msg_3", BODY)
    assert [call.id for call in receiver.calls] == ["msg_2", "msg_3"]
    verify(receiver.calls[0])
