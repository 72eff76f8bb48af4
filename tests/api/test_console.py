"""The console's pages: who gets in, what a page shows, what a form may do."""

import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from mail.kinds import KINDS, PasswordResetEmail, WelcomeEmail
from mail.outbox import Outbox
from mail.records import State
from support.api import TestClient
from support.batches import MAIL, people
from utils.composition import SIGN_INS_PER_MINUTE, get_sessions
from utils.sessions import IDLE, LONGEST

COOKIE = "lms_mail_console"
PLACES = ("/console", "/console/emails", "/console/emails/some-id")


@pytest.fixture
def browser(client: TestClient) -> TestClient:
    """A browser that is not signed in: it has no API key, and a cookie jar of its own."""
    return TestClient(
        client.app,
        base_url="http://127.0.0.1:8000",
        client=("127.0.0.1", 50_000),
        follow_redirects=False,
        raise_server_exceptions=False,
    )


@pytest.fixture
def admin(browser: TestClient) -> TestClient:
    sign_in(browser, "all-key")
    return browser


def sign_in(browser: TestClient, key: str, **more: str) -> int:
    return int(browser.post("/console/sign-in", data={"key": key, **more}).status_code)


def token_of(browser: TestClient, place: str = "/console") -> str:
    found = re.search(r'name="token" value="([0-9a-f]{64})"', browser.get(place).text)
    assert found
    return found[1]


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
        admin.post("/console/gallery/welcome/send", data={"token": token, "to": "me@example.com"})
        page = admin.get("/console/actions").text
        assert re.findall(r">([^<>]+): (?:email )?[\w-]+</a>", page) == ["sent a sample", "Pause", "cancelled"]
        assert page.count("<td>all</td>") == 3


class TestPages:
    def test_no_page_may_load_or_be_loaded_from_elsewhere(self, admin: TestClient) -> None:
        for place in (*PLACES, "/console/sign-in", "/console/nothing"):
            answer = admin.get(place)
            if place == "/console/nothing":
                assert answer.status_code == 404
                continue
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert answer.headers["cache-control"] == "no-store"
            assert not re.search(r"<[^>]+\s(style|on\w+)=|<script>|<style", answer.text)

    def test_an_address_an_id_or_nothing(self, admin: TestClient, outbox: Outbox) -> None:
        email_id = outbox.accept(WelcomeEmail(to="Maria@example.com", name="Maria")).id
        outbox.accept(WelcomeEmail(to="bob@example.com", name="Bob"))
        found = admin.get("/console/emails", params={"q": " maria@example.com "}).text
        assert email_id in found
        assert "bob@example.com" not in found
        assert (
            admin.get("/console/emails", params={"q": email_id}).headers["location"] == f"/console/emails/{email_id}"
        )
        nothing = admin.get("/console/emails", params={"q": "nobody"})
        assert nothing.status_code == 200
        assert "Nothing is found" in nothing.text
        assert admin.get("/console/emails/nobody").status_code == 404

    def test_pages_of_fifty(self, admin: TestClient, outbox: Outbox) -> None:
        for number in range(53):
            outbox.accept(WelcomeEmail(to=f"p{number}@example.com", name="P"))
        first = admin.get("/console/emails", params={"kind": "welcome"}).text
        assert first.count("<tr>") == 51
        older = re.search(r'href="([^"]+)" rel="next"', first)
        assert older
        second = admin.get(older[1].replace("&amp;", "&")).text
        assert second.count("<tr>") == 4
        assert "Newest" in second
        assert "selected>welcome" in second

    def test_a_secret_is_not_shown_and_markup_is_text(self, admin: TestClient, outbox: Outbox) -> None:
        link = "https://lms.example.com/reset?token=s3cr3t-w0rd"
        email_id = outbox.accept(
            PasswordResetEmail(to="ada@example.com", name="<script>x()</script>", reset_url=link)
        ).id
        page = admin.get(f"/console/emails/{email_id}").text
        assert "s3cr3t-w0rd" not in page
        assert "&lt;script&gt;x()" in page
        assert "<script>x" not in page

    def test_a_mail_is_shown_without_its_secret(self, admin: TestClient, outbox: Outbox) -> None:
        link = "https://lms.example.com/reset?token=s3cr3t-w0rd"
        email_id = outbox.accept(PasswordResetEmail(to="ada@example.com", name="Ada", reset_url=link)).id
        shown = admin.get(f"/console/emails/{email_id}/html")
        assert "sandbox" in shown.headers["content-security-policy"]
        assert "Choose a new password" in shown.text
        assert "hidden.invalid" in shown.text
        assert "s3cr3t-w0rd" not in shown.text
        again = admin.post(f"/console/emails/{email_id}/again", data={"token": token_of(admin)})
        assert again.status_code == 409
        assert len(outbox.list().items) == 1

    def test_the_same_once_more(self, admin: TestClient, client: TestClient, outbox: Outbox) -> None:
        batch = client.post("/api/batches", json={**MAIL, "recipients": people(1)}).json()["id"]
        assert "News of Algebra" in admin.get(f"/console/emails/{batch}-0/html").text
        answer = admin.post(f"/console/emails/{batch}-0/again", data={"token": token_of(admin)})
        record = outbox.record(answer.headers["location"].rpartition("/")[2])
        assert (record.to, record.fields["subject"], record.batch) == (
            "p0@example.com",
            "News of Algebra, Ada 0",
            None,
        )

    def test_the_overview_says_what_is_wrong(self, admin: TestClient, outbox: Outbox) -> None:
        page = admin.get("/console").text
        assert "no worker node serves this lane" in page
        assert "Run ./start_celery.sh" in page
        outbox.accept(WelcomeEmail.sample())
        assert admin.get("/console").status_code == 200

    def test_redis_is_away(self, open_api: Callable[..., TestClient], admin: TestClient, dead: str) -> None:
        cookie = {"Cookie": f"{COOKIE}={admin.cookies[COOKIE]}"}
        away = open_api(REDIS_URL=dead)
        answer = away.get("/console", headers=cookie)
        assert answer.status_code == 503
        assert "kept" in answer.text


class TestBatches:
    @pytest.fixture
    def batch(self, client: TestClient) -> str:
        answer = client.post("/api/batches", json={**MAIL, "recipients": people(120)})
        return str(answer.json()["id"])

    def test_a_list_and_a_page(self, admin: TestClient, batch: str) -> None:
        assert "News of {{ course }}" in admin.get("/console/batches").text
        page = admin.get(f"/console/batches/{batch}").text
        assert "0 of 120 sent" in page
        assert page.count("<tr>") == 51
        after = re.search(r'href="([^"#]+)#recipients" rel="next"', page)
        assert after
        assert admin.get(after[1].replace("&amp;", "&")).text.count("<tr>") == 51
        assert "Nobody was missed" in admin.get(f"/console/batches/{batch}", params={"state": "missed"}).text

    def test_steered(self, admin: TestClient, client: TestClient, batch: str) -> None:
        place = f"/console/batches/{batch}"
        token = token_of(admin)

        def state() -> str:
            return str(client.get(f"/api/batches/{batch}").json()["state"])

        assert admin.post(f"{place}/pause", data={"token": token}).headers["location"] == place
        assert state() == "paused"
        assert ">Resume<" in admin.get(place).text
        admin.post(f"{place}/resume", data={"token": token})
        assert state() == "queued"
        admin.post(f"{place}/cancel", data={"token": token})
        assert state() == "cancelled"
        refused = admin.post(f"{place}/pause", data={"token": token})
        assert refused.status_code == 409
        assert "cannot be paused" in refused.text
        assert admin.post(f"{place}/explode", data={"token": token}).status_code == 404

    def test_only_with_the_scope_bulk(self, browser: TestClient, client: TestClient, batch: str) -> None:
        sign_in(browser, "read-key")
        page = browser.get(f"/console/batches/{batch}").text
        assert "<button>Pause" not in page
        token = token_of(browser)
        assert browser.post(f"/console/batches/{batch}/cancel", data={"token": token}).status_code == 403
        assert client.get(f"/api/batches/{batch}").json()["state"] == "queued"


class TestDeadLetters:
    def fail(self, outbox: Outbox, to: str, error: str, **more: object) -> str:
        email_id = outbox.accept(WelcomeEmail(to=to, name="Ada")).id
        outbox.claim(email_id, "t", "node")
        outbox.settle(email_id, "t", "failed", code=550, error=error, refused=True, **more)
        return email_id

    def test_grouped_by_cause_and_sent_again_together(self, admin: TestClient, outbox: Outbox) -> None:
        full = [
            self.fail(outbox, f"p{n}@example.com", f"552 <p{n}@example.com> mailbox full, id 4F2a9c{n}x8812")
            for n in range(7)
        ]
        other = self.fail(outbox, "q@example.com", "550 blocked")
        page = admin.get("/console/dead-letters").text
        causes = re.findall(r'name="cause" value="(\w+)"', page)
        assert len(causes) == 2
        assert "Send 7 again" in page
        assert "and 2 more" in page
        answer = admin.post("/console/dead-letters/retry", data={"token": token_of(admin), "cause": causes[0]})
        assert answer.status_code == 303
        assert {outbox.record(email_id).state for email_id in full} == {State.QUEUED}
        assert outbox.record(other).state == State.FAILED
        again = admin.post("/console/dead-letters/retry", data={"token": token_of(admin), "cause": causes[0]})
        assert again.status_code == 404

    def test_reading_is_not_acting(self, browser: TestClient, outbox: Outbox) -> None:
        email_id = self.fail(outbox, "q@example.com", "550 blocked")
        sign_in(browser, "read-key")
        page = browser.get("/console/dead-letters").text
        assert "550 blocked" in page
        assert "Send 1 again" not in page
        data = {"token": token_of(browser), "cause": "x"}
        assert browser.post("/console/dead-letters/retry", data=data).status_code == 403
        assert outbox.record(email_id).state == State.FAILED


class TestGallery:
    @pytest.mark.parametrize("kind", list(KINDS))
    def test_every_kind(self, admin: TestClient, kind: str) -> None:
        assert f"/console/gallery/{kind}" in admin.get("/console/gallery").text
        page = admin.get(f"/console/gallery/{kind}")
        assert page.status_code == 200
        assert ">look<" not in page.text
        shown = admin.get(f"/console/gallery/{kind}/html")
        assert "sandbox" in shown.headers["content-security-policy"]
        assert "script-src" not in shown.headers["content-security-policy"]
        assert "Message-ID: <preview@" in admin.get(f"/console/gallery/{kind}/source").text

    def test_fields_are_changed_and_wrong_ones_named(self, admin: TestClient) -> None:
        place = "/console/gallery/welcome"
        changed = admin.post(place, data={"token": token_of(admin), "name": "Grace", "to": "g@example.com"})
        assert "Welcome to Example Academy, Grace" in changed.text
        assert "name=Grace" in changed.text
        assert "Grace" in admin.get(f"{place}/html", params={"name": "Grace"}).text
        wrong = admin.post(place, data={"token": token_of(admin), "name": "x" * 101})
        assert wrong.status_code == 422
        assert 'id="wrong-name"' in wrong.text
        assert admin.get(f"{place}/html", params={"name": "x" * 101}).status_code == 422

    def test_sent_to_oneself(self, admin: TestClient, outbox: Outbox) -> None:
        data = {"token": token_of(admin), "to": " me@example.com ", "name": "Me"}
        answer = admin.post("/console/gallery/welcome/send", data=data)
        assert answer.status_code == 303
        record = outbox.record(answer.headers["location"].rpartition("/")[2])
        assert (record.to, record.fields) == ("me@example.com", {"name": "Me"})

    def test_only_with_the_scope_of_its_kind(self, browser: TestClient, outbox: Outbox) -> None:
        sign_in(browser, "read-key")
        assert "Send it to" not in browser.get("/console/gallery/welcome").text
        data = {"token": token_of(browser), "to": "me@example.com"}
        assert browser.post("/console/gallery/welcome/send", data=data).status_code == 403
        assert outbox.list().items == []

    def test_no_such_kind(self, admin: TestClient) -> None:
        for place in ("", "/html", "/source"):
            assert admin.get(f"/console/gallery/nothing{place}").status_code == 404


class TestComposing:
    WRITTEN: Mapping[str, str] = {
        "subject": "News of {{ course }}",
        "body": "Hello {{ name }},\n\n*go on* [here]({{ url }}) <script>x()</script>",
        "recipients": "to,name,course,url\n"
        "ada@example.com,Ada,Algebra,https://lms.example.com/a\n"
        "bob@example.com,Bob,Biology,https://lms.example.com/b\n",
        "key": "k1",
    }

    @pytest.fixture
    def post(self, admin: TestClient) -> Callable[..., Any]:
        def post(do: str = "show", place: str = "new", **more: str) -> Any:
            data = {**self.WRITTEN, "token": token_of(admin), "do": do, **more}
            return admin.post(f"/console/batches/{place}", data=data)

        return post

    def test_shown_to_the_first_recipient(self, post: Callable[..., Any]) -> None:
        shown = post(place="preview")
        assert "sandbox" in shown.headers["content-security-policy"]
        for part in ("Hello Ada", "<em>go on</em>", 'href="https://lms.example.com/a"', "&lt;script&gt;"):
            assert part in shown.text
        assert "<script" not in shown.text

    @pytest.mark.parametrize(
        ("change", "remark"),
        [
            ({"body": "{{ grade }}"}, "No column for"),
            ({"subject": ""}, "subject"),
            ({"recipients": "name\nAda\n"}, "must name a column to"),
            ({"recipients": ""}, "line 1"),
            ({"recipients": "to,name,course,url\nada@,A,B,https://lms.example.com\n"}, "line 2, to"),
            ({"recipients": 'to,name,course,url\na@example.com,"A,B,C\n'}, "quote"),
            ({"recipients": "to,name,course,url\nada@example.com,A,B,javascript:x()\n"}, "line 2"),
        ],
    )
    def test_what_is_wrong_is_named_while_it_is_written(
        self, post: Callable[..., Any], client: TestClient, change: dict[str, str], remark: str
    ) -> None:
        assert remark in post(place="check", **change).text
        refused = post("send", count="1", **change)
        assert refused.status_code == 422
        assert client.get("/api/batches").json()["items"] == []

    def test_sent_only_with_the_number_typed(self, post: Callable[..., Any], client: TestClient) -> None:
        for count in ("", "1", "3", "two"):
            assert "type 2 to send it" in post("send", count=count).text
        assert client.get("/api/batches").json()["items"] == []
        sent = post("send", count=" 2 ", course_id="bio-1")
        assert sent.status_code == 303
        batch = client.get(f"/api{sent.headers['location'].removeprefix('/console')}").json()
        assert (batch["total"], batch["course_id"], batch["subject"]) == (2, "bio-1", "News of {{ course }}")
        assert post("send", count="2", course_id="bio-1").headers["location"] == sent.headers["location"]
        assert len(client.get("/api/batches").json()["items"]) == 1

    def test_a_test_mail_to_oneself(self, post: Callable[..., Any], outbox: Outbox) -> None:
        answer = post("test", test_to="me@example.com")
        assert "on its way" in answer.text
        (record,) = outbox.list().items
        assert (record.to, record.fields["subject"]) == ("me@example.com", "News of Algebra")
        assert post("test", test_to="nobody").status_code == 422

    def test_only_with_the_scope_bulk(self, browser: TestClient) -> None:
        sign_in(browser, "read-key")
        assert browser.get("/console/batches/new").status_code == 403
        assert "New announcement" not in browser.get("/console/batches").text
        for place in ("new", "check", "preview"):
            data = {**self.WRITTEN, "token": token_of(browser), "do": "send", "count": "2"}
            assert browser.post(f"/console/batches/{place}", data=data).status_code == 403
