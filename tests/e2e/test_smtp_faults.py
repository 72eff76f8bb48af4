"""The SMTP server down, busy, refusing us, or cut off: what the record says and what arrives."""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from support.processes import wait_until
from support.service import Service
from support.smtp_server import SmtpServer

Build = Callable[..., Service]


def test_server_down_loses_nothing_and_uses_up_no_attempt(build: Build) -> None:
    service = build()
    service.worker()
    service.api()
    service.smtp.stop()
    ids = service.accept(30)
    closed = wait_until(lambda: warning(service, "cannot be reached"))
    assert "kept back" in closed
    time.sleep(3)  # the outage itself
    service.smtp.start()
    service.wait_for_all(30)
    assert service.copies() == Counter(ids)
    assert {service.record(email_id)["attempts"] for email_id in ids} == {1}
    assert not warning(service, "cannot be reached")


def test_wrong_password_keeps_all_mail_until_it_is_mended(build: Build) -> None:
    with SmtpServer(auth=("lms", "right")) as smtp:
        service = build(smtp=smtp, SMTP_USERNAME="lms", SMTP_PASSWORD="wrong-password")
        worker = service.worker()
        service.api()
        ids = service.accept(5)
        refusal = wait_until(lambda: warning(service, "535"))
        assert "wrong-password" not in refusal
        tries = smtp.verbs().count("AUTH")
        assert tries <= 6
        worker.stop()
        assert set(service.states()) <= {"queued", "retrying"}
        service.worker(SMTP_PASSWORD="right")
        service.wait_for_all(5)
        assert service.copies() == Counter(ids)
        assert "wrong-password" not in worker.text()


def test_a_cut_after_the_final_dot_is_sent_again_and_reported(build: Build) -> None:
    service = build(RETRY_BASE_SECONDS="1", RETRY_MAX_SECONDS="1")
    service.smtp.cut("dot-after-store", times=1)
    service.worker()
    service.api()
    email_id = service.send()
    record = service.wait_for_state(email_id, "sent")
    assert service.copies()[email_id] == 2
    assert record["possible_duplicate"]
    assert any("possible duplicate" in (change["note"] or "") for change in record["timeline"])


def test_busy_server_slows_the_lane_and_all_arrive(build: Build) -> None:
    service = build()
    service.smtp.reply("mail", "421 4.7.0 too many connections", times=3)
    service.worker()
    service.api()
    ids = service.accept(20)
    service.wait_for_all(20)
    assert service.copies() == Counter(ids)
    assert {service.record(email_id)["attempts"] for email_id in ids} == {1}


def warning(service: Service, word: str) -> str:
    body: dict[str, Any] = service.http.get("/health/ready").json()
    return next((warning for warning in body["warnings"] if word in warning), "")
