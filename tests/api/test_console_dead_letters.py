"""The console: what failed or is held, by cause, and what becomes of it."""

import re

import pytest

from mail.chunks import ChunkClaim, ChunkId, Chunks, Result
from mail.kinds import PasswordResetEmail, WelcomeEmail
from mail.outbox import Outbox
from mail.records import State
from support.api import TestClient
from support.batches import MAIL, people
from support.console import sign_in, token_of

PLACE = "/console/dead-letters"


def fail(outbox: Outbox, to: str, error: str) -> str:
    email_id = outbox.accept(WelcomeEmail(to=to, name="Ada")).id
    outbox.claim(email_id, "t", "node")
    outbox.settle(email_id, "t", "failed", code=550, error=error, refused=True)
    return email_id


@pytest.fixture
def full(outbox: Outbox) -> list[str]:
    """Seven that failed for one reason, in the words of a server that says each time something else."""
    return [
        fail(outbox, f"p{n}@example.com", f"552 <p{n}@example.com> mailbox full, id 4F2a9c{n}x8812") for n in range(7)
    ]


def causes_of(browser: TestClient) -> list[str]:
    return re.findall(r'name="cause" value="(\w+)"', browser.get(PLACE).text)


def states(outbox: Outbox, ids: list[str]) -> list[State]:
    return [outbox.record(one).state for one in ids]


def test_all_of_a_cause_are_sent_again(admin: TestClient, outbox: Outbox, full: list[str]) -> None:
    other = fail(outbox, "q@example.com", "550 blocked")
    page = admin.get(PLACE).text
    causes = causes_of(admin)
    assert len(causes) == 2
    assert "all 7" in page
    assert "and 2 more" in page
    data = {"token": token_of(admin), "cause": causes[0], "all": "on"}
    answer = admin.post(f"{PLACE}/retry", data=data)
    assert answer.headers["location"] == f"{PLACE}?done=7&left=0"
    assert "Done: 7." in admin.get(answer.headers["location"]).text
    assert set(states(outbox, full)) == {State.QUEUED}
    assert outbox.record(other).state == State.FAILED
    assert admin.post(f"{PLACE}/retry", data=data).status_code == 404
    assert "sent again: 7 dead letters" in admin.get("/console/actions").text


def test_only_those_that_are_ticked(admin: TestClient, outbox: Outbox, full: list[str]) -> None:
    (cause,) = causes_of(admin)
    more = admin.get(PLACE, params={"cause": cause}).text
    assert all(f'value="{one}"' in more for one in full)
    data = {"token": token_of(admin), "cause": cause, "id": [full[1], full[4], "nobody"]}
    assert admin.post(f"{PLACE}/retry", data=data).headers["location"] == f"{PLACE}?done=2&left=0"
    assert [one for one in full if outbox.record(one).state == State.QUEUED] == [full[1], full[4]]
    nothing = admin.post(f"{PLACE}/retry", data={"token": token_of(admin), "cause": cause})
    assert (nothing.status_code, "No mail was chosen" in nothing.text) == (422, True)


def test_dropped_with_a_reason(admin: TestClient, outbox: Outbox, full: list[str]) -> None:
    (cause,) = causes_of(admin)
    data = {"token": token_of(admin), "cause": cause, "id": full[0]}
    for reason in ("", "  ", "x" * 201):
        refused = admin.post(f"{PLACE}/drop", data={**data, "reason": reason})
        assert (refused.status_code, "say why" in refused.text) == (422, True)
    assert outbox.record(full[0]).state == State.FAILED
    admin.post(f"{PLACE}/drop", data={**data, "reason": " left\n the school "})
    record = outbox.record(full[0])
    assert (record.state, record.error) == (State.CANCELLED, "dropped in the console by all: left the school")
    assert [change.state for change in record.timeline][-2:] == [State.FAILED, State.CANCELLED]
    assert f'value="{full[0]}"' not in admin.get(PLACE, params={"cause": cause}).text
    assert admin.post(f"/console/emails/{full[0]}/drop", data={**data, "reason": "x"}).status_code == 303


def test_one_is_dropped_on_its_own_page(admin: TestClient, outbox: Outbox) -> None:
    email_id = fail(outbox, "q@example.com", "550 blocked")
    place = f"/console/emails/{email_id}"
    assert "Drop …" in admin.get(place).text
    assert admin.post(f"{place}/drop", data={"token": token_of(admin)}).status_code == 422
    admin.post(f"{place}/drop", data={"token": token_of(admin), "reason": "a typing error"})
    assert outbox.record(email_id).error == "dropped in the console by all: a typing error"
    assert "Drop …" not in admin.get(place).text
    sent = outbox.accept(WelcomeEmail.sample()).id
    refused = admin.post(f"/console/emails/{sent}/drop", data={"token": token_of(admin), "reason": "x"})
    assert refused.status_code == 409


def test_a_dropped_one_takes_its_secret_along(admin: TestClient, outbox: Outbox) -> None:
    email_id = outbox.accept(PasswordResetEmail.sample()).id
    outbox.claim(email_id, "t", "node")
    outbox.settle(email_id, "t", "failed", code=550, error="550 no", refused=True)
    key = outbox.wire.key("email", email_id)
    assert outbox.wire.client.hexists(key, "secret")
    admin.post(f"/console/emails/{email_id}/drop", data={"token": token_of(admin), "reason": "x"})
    assert not outbox.wire.client.hexists(key, "secret")


def test_what_cannot_be_sent_any_more_stays(admin: TestClient, outbox: Outbox, full: list[str]) -> None:
    (cause,) = causes_of(admin)
    token = token_of(admin)
    outbox.wire.client.hset(outbox.wire.key("email", full[2]), "expires", 1)
    data = {"token": token, "cause": cause, "all": "on"}
    answer = admin.post(f"{PLACE}/retry", data=data)
    assert answer.headers["location"] == f"{PLACE}?done=6&left=1"
    assert "1 stayed as it was" in admin.get(answer.headers["location"]).text
    assert outbox.record(full[2]).state == State.FAILED


def test_what_is_held_is_released_or_dropped(admin: TestClient, client: TestClient, outbox: Outbox) -> None:
    batch = client.post("/api/batches", json={**MAIL, "recipients": people(3)}).json()["id"]
    chunk = Chunks(outbox).claim(ChunkId(batch, 0), "t", "node", size=10)
    assert isinstance(chunk, ChunkClaim)
    lost = {"error": "cut after the dot", "delay": 1, "attempts": 5, "unknown": True}
    Chunks(outbox).settle(chunk, "node", [Result(at, "retry", lost) for at in chunk.positions], leave=False)
    page = admin.get(PLACE).text
    assert "Release …" in page
    assert "it may come twice" in page
    (cause,) = causes_of(admin)
    data = {"token": token_of(admin), "cause": cause}
    admin.post(f"{PLACE}/retry", data={**data, "id": f"{batch}-0"})
    admin.post(f"{PLACE}/drop", data={**data, "id": f"{batch}-2", "reason": "has it: I asked"})
    found = client.get(f"/api/batches/{batch}").json()
    assert found["counts"] == {"queued": 1, "held": 1, "cancelled": 1}
    assert outbox.record(f"{batch}-0").possible_duplicate
    # Who was dropped gets nothing, whatever is done with the batch afterwards.
    client.post(f"/api/batches/{batch}/release-held")
    client.post(f"/api/batches/{batch}/retry-failed")
    assert client.get(f"/api/batches/{batch}").json()["counts"] == {"queued": 2, "cancelled": 1}


def test_reading_is_not_acting(browser: TestClient, outbox: Outbox) -> None:
    email_id = fail(outbox, "q@example.com", "550 blocked")
    sign_in(browser, "read-key")
    page = browser.get(PLACE).text
    assert "550 blocked" in page
    assert "Send again" not in page
    assert "Drop" not in page
    data = {"token": token_of(browser), "cause": "x", "all": "on", "reason": "x"}
    for place in (f"{PLACE}/retry", f"{PLACE}/drop", f"/console/emails/{email_id}/drop"):
        assert browser.post(place, data=data).status_code == 403
    assert outbox.record(email_id).state == State.FAILED
