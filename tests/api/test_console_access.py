"""The console: who gets in, and what whoever is in may do."""

import re
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

import pytest

from mail.kinds import WelcomeEmail
from mail.outbox import Outbox
from mail.records import State
from support.api import TestClient
from support.batches import MAIL, people
from support.console import COOKIE, sign_in, token_of
from utils.composition import SIGN_INS_PER_MINUTE, get_sessions
from utils.sessions import IDLE, LONGEST

PLACES = ("/console", "/console/emails", "/console/emails/some-id")


class TestAccess:
    @pytest.mark.parametrize("place", PLACES)
    def test_a_stranger_is_sent_to_sign_in_and_comes_back(self, browser: TestClient, place: str) -> None:
        answer = browser.get(place, params={"state": "failed"})
        assert answer.status_code == 303
        there = urlsplit(answer.headers["location"])
        assert there.path == "/console/sign-in"
        assert parse_qs(there.query)["next"] == [f"{place}?state=failed"]
        form = browser.get(answer.headers["location"]).text
        assert f'name="next" value="{place}?state=failed"' in form
        back = browser.post("/console/sign-in", data={"key": "all-key", "next": f"{place}?state=failed"})
        assert (back.status_code, back.headers["location"]) == (303, f"{place}?state=failed")

    @pytest.mark.parametrize(
        "place", ["https://evil.example", "//evil.example", "/console.evil", "/docs", "/console/sign-out"]
    )
    def test_nobody_is_led_elsewhere(self, browser: TestClient, place: str) -> None:
        answer = browser.post("/console/sign-in", data={"key": "all-key", "next": place})
        assert answer.headers["location"] == "/console"

    def test_the_cookie_is_for_the_console_alone(self, browser: TestClient) -> None:
        answer = browser.post("/console/sign-in", data={"key": "all-key"})
        cookie = answer.headers["set-cookie"]
        for part in ("HttpOnly", "Path=/console", "SameSite=strict", f"Max-Age={IDLE}"):
            assert part in cookie
        assert "all-key" not in cookie
        assert "Secure" not in cookie
        over_tls = TestClient(browser.app, base_url="https://127.0.0.1:8000", follow_redirects=False)
        assert "Secure" in over_tls.post("/console/sign-in", data={"key": "all-key"}).headers["set-cookie"]

    def test_the_api_takes_no_cookie(self, admin: TestClient) -> None:
        assert admin.get("/console").status_code == 200
        assert admin.get("/api/emails").status_code == 401

    @pytest.mark.parametrize(
        ("key", "status", "word"),
        [("wrong", 401, "not known"), ("send-key", 403, "scope read"), ("", 401, "not known")],
    )
    def test_a_key_that_will_not_do(self, browser: TestClient, key: str, status: int, word: str) -> None:
        answer = browser.post("/console/sign-in", data={"key": key})
        assert answer.status_code == status
        assert word in answer.text
        assert "set-cookie" not in answer.headers
        assert browser.get("/console").status_code == 303

    def test_attempts_are_limited(self, browser: TestClient) -> None:
        codes = [sign_in(browser, "wrong") for _ in range(SIGN_INS_PER_MINUTE + 1)]
        assert codes == [401] * SIGN_INS_PER_MINUTE + [429]

    def test_signing_out_ends_copies_of_the_cookie_too(self, admin: TestClient) -> None:
        stolen = admin.cookies[COOKIE]
        answer = admin.post("/console/sign-out", data={"token": token_of(admin)})
        assert answer.status_code == 303
        assert COOKIE not in admin.cookies
        admin.cookies.set(COOKIE, stolen, path="/console")
        assert admin.get("/console").status_code == 303

    @pytest.mark.parametrize("broken", ["", "x", "gAAAAAB" + "x" * 100, "\u00e9"])
    def test_a_cookie_that_is_not_ours(self, browser: TestClient, broken: str) -> None:
        answer = browser.get("/console", headers={"Cookie": f"{COOKIE}={broken}".encode()})
        assert answer.status_code == 303

    def test_idle_for_long_and_signed_in_for_long(self, admin: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("utils.sessions.IDLE", -1)
        assert admin.get("/console").status_code == 303
        monkeypatch.setattr("utils.sessions.IDLE", IDLE)
        assert admin.get("/console").status_code == 200
        monkeypatch.setattr("utils.sessions.LONGEST", -1)
        assert admin.get("/console").status_code == 303
        assert LONGEST > IDLE

    def test_a_key_that_was_taken_away_ends_its_sessions(
        self, open_api: Callable[..., TestClient], admin: TestClient
    ) -> None:
        cookie = {"Cookie": f"{COOKIE}={admin.cookies[COOKIE]}"}
        same = open_api()
        assert same.get("/console", headers=cookie, follow_redirects=False).status_code == 200
        for keys in ("all:read+admin:another-key-of-the-name", "other:read:all-key"):
            changed = open_api(API_KEYS=keys)
            assert changed.get("/console", headers=cookie, follow_redirects=False).status_code == 303


class TestTheLink:
    """The one that ./start.sh prints."""

    @pytest.fixture
    def link(self, browser: TestClient) -> str:
        from settings import get_settings

        caller = next(key for key in get_settings().keys if key.name == "all")
        return f"/console/sign-in?once={get_sessions().link(caller)}"

    def test_it_signs_in_once(self, browser: TestClient, link: str) -> None:
        assert browser.get(link).headers["location"] == "/console"
        assert browser.get("/console").status_code == 200
        browser.cookies.clear()
        again = browser.get(link)
        assert again.status_code == 401
        assert "was used" in again.text

    def test_only_from_the_machine_itself(self, browser: TestClient, link: str) -> None:
        other = TestClient(browser.app, client=("192.0.2.7", 50_000), follow_redirects=False)
        assert other.get(link).status_code == 403
        assert browser.get(link).status_code == 303

    def test_a_cookie_is_no_link_and_a_link_no_cookie(self, browser: TestClient, link: str) -> None:
        word = link.partition("=")[2]
        assert browser.get("/console", headers={"Cookie": f"{COOKIE}={word}"}).status_code == 303
        sign_in(browser, "all-key")
        assert browser.get("/console/sign-in", params={"once": browser.cookies[COOKIE]}).status_code == 401


class TestForms:
    @pytest.fixture
    def failed(self, outbox: Outbox) -> str:
        email_id = outbox.accept(WelcomeEmail.sample()).id
        outbox.claim(email_id, "t", "node")
        outbox.settle(email_id, "t", "failed", code=550, error="550 no such user", refused=True)
        return email_id

    def test_retry(self, admin: TestClient, outbox: Outbox, failed: str) -> None:
        place = f"/console/emails/{failed}"
        assert "Send again" in admin.get(place).text
        assert admin.post(f"{place}/retry", data={"token": token_of(admin)}).status_code == 303
        assert outbox.record(failed).state == State.QUEUED
        again = admin.post(f"{place}/retry", data={"token": token_of(admin)})
        assert again.status_code == 409
        assert "cannot be retried" in again.text

    def test_cancel_says_who_did_it(self, admin: TestClient, outbox: Outbox) -> None:
        email_id = outbox.accept(WelcomeEmail.sample()).id
        admin.post(f"/console/emails/{email_id}/cancel", data={"token": token_of(admin)})
        record = outbox.record(email_id)
        assert record.state == State.CANCELLED
        assert record.error == "cancelled in the console by all"

    @pytest.mark.parametrize(
        ("token", "headers"),
        [
            ("", {}),
            ("0" * 64, {}),
            ("\u00e9", {}),
            ("right", {"Origin": "https://evil.example"}),
            ("right", {"Origin": "null"}),
        ],
    )
    def test_a_form_of_somebody_else(
        self, admin: TestClient, outbox: Outbox, failed: str, token: str, headers: dict[str, str]
    ) -> None:
        data = {"token": token_of(admin) if token == "right" else token}
        assert admin.post(f"/console/emails/{failed}/retry", data=data, headers=headers).status_code == 403
        assert outbox.record(failed).state == State.FAILED

    def test_reading_is_not_acting(self, browser: TestClient, outbox: Outbox, failed: str) -> None:
        sign_in(browser, "read-key")
        place = f"/console/emails/{failed}"
        assert "Send again" not in browser.get(place).text
        assert browser.post(f"{place}/retry", data={"token": token_of(browser)}).status_code == 403
        assert outbox.record(failed).state == State.FAILED

    def test_a_form_without_end(self, admin: TestClient) -> None:
        answer = admin.post("/console/sign-in", content=b"a=1&" * 100_000)
        assert answer.status_code == 422

    def test_without_a_session(self, browser: TestClient, outbox: Outbox, failed: str) -> None:
        assert browser.post(f"/console/emails/{failed}/retry", data={"token": "x"}).status_code == 401
        assert outbox.record(failed).state == State.FAILED


class TestActions:
    def test_whoever_does_something_is_written_down(
        self, admin: TestClient, client: TestClient, outbox: Outbox
    ) -> None:
        assert "Nothing was done" in admin.get("/console/actions").text
        token = token_of(admin)
        email_id = outbox.accept(WelcomeEmail.sample()).id
        batch = client.post("/api/batches", json={**MAIL, "recipients": people(2)}).json()["id"]
        admin.post(f"/console/emails/{email_id}/cancel", data={"token": token})
        admin.post(f"/console/emails/{email_id}/retry", data={"token": token})  # refused, so not done
        admin.post(f"/console/batches/{batch}/pause", data={"token": token})
        admin.post("/console/gallery/welcome/send", data={"token": token, "me": "me@example.com"})
        page = admin.get("/console/actions").text
        assert re.findall(r">([^<>]+): (?:email )?[\w-]+</a>", page) == ["sent a sample", "Pause", "cancelled"]
        assert page.count("<td>all</td>") == 3
