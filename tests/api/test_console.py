"""The console's pages: what they show, and what their forms do."""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mail.kinds import KINDS, PasswordResetEmail, WelcomeEmail
from mail.outbox import Outbox
from support.api import TestClient
from support.batches import MAIL, people
from support.console import COOKIE, sign_in, token_of

PLACES = ("/console", "/console/emails", "/console/emails/some-id")


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
        assert first.count("<tr") == 51
        older = re.search(r'href="([^"]+)" rel="next"', first)
        assert older
        second = admin.get(older[1].replace("&amp;", "&")).text
        assert second.count("<tr") == 4
        assert "Newest" in second
        assert "selected>welcome" in second

    def test_a_day_is_the_readers(self, admin: TestClient, outbox: Outbox) -> None:
        """At 23:30 UTC it is the next day in Berlin."""
        midnight = datetime(2026, 1, 31, tzinfo=UTC)
        for name, at in (("late", midnight + timedelta(hours=23, minutes=30)), ("early", midnight)):
            email_id = outbox.accept(WelcomeEmail(to=f"{name}@example.com", name="P")).id
            outbox.wire.client.zadd(outbox.wire.key("all"), {email_id: at.timestamp() * 1000})

        def found(**asked: str) -> set[str]:
            page = admin.get("/console/emails", params=asked).text
            return set(re.findall(r">(late|early)@example.com</a>", page))

        assert found(day="2026-01-31") == {"late", "early"}
        assert found(day="2026-01-31", zone="Europe/Berlin") == {"early"}
        assert found(day="2026-02-01", zone="Europe/Berlin") == {"late"}
        assert found(day="2026-02-01", zone="../../etc/passwd") == set()
        assert found(day="2026-02-01", zone="Europe/Berlin", state="sent") == set()
        for wrong in ("tomorrow", "2026-02-30", "9999-12-31"):
            answer = admin.get("/console/emails", params={"day": wrong, "zone": "Asia/Tokyo"})
            assert (answer.status_code, "day: must be a day such as" in answer.text) == (422, True)

    def test_pages_of_a_day(self, admin: TestClient, outbox: Outbox) -> None:
        for number in range(52):
            outbox.accept(WelcomeEmail(to=f"p{number}@example.com", name="P"))
        today = f"{datetime.now(UTC):%Y-%m-%d}"
        first = admin.get("/console/emails", params={"day": today}).text
        older = re.search(r'href="([^"]+)" rel="next"', first)
        assert older
        second = admin.get(older[1].replace("&amp;", "&")).text
        assert (first.count("<tr id"), second.count("<tr id")) == (50, 2)

    def test_a_batch_and_its_day(self, admin: TestClient, client: TestClient) -> None:
        batch = client.post("/api/batches", json={**MAIL, "recipients": people(2)}).json()["id"]
        today = f"{datetime.now(UTC):%Y-%m-%d}"
        assert admin.get("/console/emails", params={"batch": batch, "day": today}).text.count("<tr id") == 2
        assert "<tr id" not in admin.get("/console/emails", params={"batch": batch, "day": "2020-01-01"}).text

    @pytest.mark.parametrize("asked", [{"kind": "welcome"}, {"state": "sent"}, {"batch": "batch-0"}, {"cursor": "x"}])
    def test_what_costs_much_is_not_looked_at_again_and_again(self, admin: TestClient, asked: dict[str, str]) -> None:
        assert admin.get("/console/emails/events", params=asked).status_code == 404

    def test_a_fault_that_all_lanes_share_is_told_once(self, admin: TestClient, outbox: Outbox) -> None:
        email_id = outbox.accept(WelcomeEmail.sample()).id
        outbox.claim(email_id, "t", "node")
        outbox.settle(
            email_id, "t", "release", gate="smtp", error="SMTP server x refuses user or password", cap=60_000
        )
        page = admin.get("/console").text
        assert page.count("Mail is kept back: SMTP server x refuses user or password") == 1
        assert re.search(r"critical, standard, bulk,\s*since <time", page)
        assert "python test_smtp.py" in page

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
        assert page.count("No worker node serves this lane") == 1
        assert "critical, standard, bulk" in page
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
        posted = admin.post(f"{place}/html", data={"token": token_of(admin), "name": "Grace"})
        assert "Grace" in posted.text
        assert "sandbox" in posted.headers["content-security-policy"]
        assert "Grace" in admin.post(f"{place}/source", data={"token": token_of(admin), "name": "Grace"}).text
        wrong = admin.post(place, data={"token": token_of(admin), "name": "x" * 101})
        assert wrong.status_code == 422
        assert 'id="wrong-name"' in wrong.text
        assert "there is no mail" in admin.get(f"{place}/html", params={"name": "x" * 101}).text

    def test_sent_to_oneself(self, admin: TestClient, outbox: Outbox) -> None:
        data = {"token": token_of(admin), "to": "ada@example.com", "me": " me@example.com ", "name": "Me"}
        answer = admin.post("/console/gallery/welcome/send", data=data)
        assert answer.status_code == 303
        record = outbox.record(answer.headers["location"].rpartition("/")[2])
        assert (record.to, record.fields) == ("me@example.com", {"name": "Me"})
        wrong = admin.post("/console/gallery/welcome/send", data={**data, "me": "me"})
        assert (wrong.status_code, 'id="wrong-me"' in wrong.text, "Welcome" in wrong.text) == (422, True, True)
        assert len(outbox.list().items) == 1

    def test_only_with_the_scope_of_its_kind(self, browser: TestClient, outbox: Outbox) -> None:
        sign_in(browser, "read-key")
        assert "Send to me" not in browser.get("/console/gallery/welcome").text
        data = {"token": token_of(browser), "me": "me@example.com"}
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
            ({"send_at": "soon"}, "send_at"),
            ({"on_unknown": "whatever"}, "on_unknown"),
            ({"recipients": "to,name,course,url\nada@,A,B,https://lms.example.com\n"}, "line 2, to"),
            ({"recipients": 'to,name,course,url\na@example.com,"A,B,C\n'}, "quote"),
            ({"recipients": "to,name,course,url\nada@example.com,A,B,javascript:x()\n"}, "line 2"),
        ],
    )
    def test_what_is_wrong_is_named_while_it_is_written(
        self, post: Callable[..., Any], client: TestClient, change: dict[str, str], remark: str
    ) -> None:
        assert remark in post(**change).text
        refused = post("send", count="1", **change)
        assert refused.status_code == 422
        assert client.get("/api/batches").json()["items"] == []

    def test_sent_only_with_the_number_typed(self, post: Callable[..., Any], client: TestClient) -> None:
        for count in ("", "1", "3", "two"):
            assert "type 2 to send it" in post("send", count=count).text
        assert client.get("/api/batches").json()["items"] == []
        later = {"send_at": "2036-01-31T09:30", "zone": "Europe/Berlin", "on_unknown": "resend"}
        sent = post("send", count=" 2 ", course_id="bio-1", **later)
        assert sent.status_code == 303
        batch = client.get(f"/api{sent.headers['location'].removeprefix('/console')}").json()
        assert (batch["total"], batch["course_id"], batch["subject"]) == (2, "bio-1", "News of {{ course }}")
        assert (batch["send_at"], batch["on_unknown"]) == ("2036-01-31T08:30:00Z", "resend")
        again = post("send", count="2", course_id="bio-1", **later)
        assert again.headers["location"] == sent.headers["location"]
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
        for place in ("new", "preview"):
            data = {**self.WRITTEN, "token": token_of(browser), "do": "send", "count": "2"}
            assert browser.post(f"/console/batches/{place}", data=data).status_code == 403


class TestInbox:
    def test_in_its_frame_under_the_same_name(self, admin: TestClient) -> None:
        answer = admin.get("/console/inbox", params={"query": "to:ada@example.com"})
        assert 'src="http://127.0.0.1:8025/?query=to%3Aada%40example.com"' in answer.text
        assert "frame-src http://127.0.0.1:8025;" in answer.headers["content-security-policy"]
        assert 'href="/console/inbox"' in admin.get("/console").text

    def test_not_from_elsewhere(self, admin: TestClient) -> None:
        answer = admin.get("/console/inbox", headers={"Host": "lms.example.com"})
        assert "<iframe" not in answer.text
        assert "http://127.0.0.1:8025/" in answer.text

    def test_only_where_mail_goes_there(self, open_api: Callable[..., TestClient], admin: TestClient) -> None:
        cookie = {"Cookie": f"{COOKIE}={admin.cookies[COOKIE]}"}
        real = open_api(SMTP_HOST="smtp.example.com")
        assert real.get("/console/inbox", headers=cookie).status_code == 404
        assert "/console/inbox" not in real.get("/console", headers=cookie).text
