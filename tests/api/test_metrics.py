"""`GET /metrics`: who may see it, what it says, and what it says without Redis. Its numbers under load are in
tests/e2e/test_metrics.py."""

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mail.kinds import KINDS, Lane, WelcomeEmail
from mail.measures import Reporter
from mail.outbox import Outbox
from mail.smtp import Envelope, SmtpConfig, SmtpTransport
from support.api import TestClient, bearer, problem
from support.needs import need
from support.processes import BACKEND, Valkey
from support.smtp_server import SmtpServer

PROMETHEUS = BACKEND.parent / "deploy" / "prometheus"
RULES = (PROMETHEUS / "lms-mail.rules.yml").read_text()
TESTS = (PROMETHEUS / "lms-mail.test.yml").read_text()
NAME = re.compile(r"lms_mail_[a-z_]+")
LIMITS = {"SMTP_MAX_PER_SECOND": "5", "SMTP_MAX_PER_DAY": "1000", "SMTP_MAX_CONNECTIONS": "3"}

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(text: str) -> Samples:
    return {
        (one.name, frozenset(one.labels.items())): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


def value(found: Samples, name: str, **labels: str) -> float:
    return found[f"lms_mail_{name}", frozenset(labels.items())]


def scrape(client: TestClient, **headers: str) -> Samples:
    answer = client.get("/metrics", headers=headers)
    assert answer.status_code == 200, answer.text
    return samples(answer.text)


def from_address(client: TestClient, host: str, port: int = 50_000) -> TestClient:
    """The same API to somebody without a key who calls from there."""
    return TestClient(client.app, client=(host, port), raise_server_exceptions=False)


def promtool(*arguments: str, given: str | None = None, cwd: Path = PROMETHEUS) -> str:
    command = [need("promtool", package="prometheus"), *arguments]
    done = subprocess.run(command, input=given, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


class TestWho:
    @pytest.mark.parametrize("headers", [bearer("read-key"), bearer("all-key"), {"X-API-Key": "read-key"}])
    def test_a_key_with_read(self, stranger: TestClient, headers: dict[str, str]) -> None:
        assert "lms_mail_redis_up 1.0" in stranger.get("/metrics", headers=headers).text

    @pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"])
    def test_this_machine(self, client: TestClient, host: str) -> None:
        assert from_address(client, host).get("/metrics").status_code == 200

    @pytest.mark.parametrize("host", ["192.0.2.7", "10.0.0.1", "::2", "::ffff:192.0.2.7", "localhost.example.com"])
    def test_another_machine(self, client: TestClient, host: str) -> None:
        answer = from_address(client, host).get("/metrics")
        problem(answer, 401)
        assert answer.headers["WWW-Authenticate"] == "Bearer"

    @pytest.mark.parametrize(
        "headers",
        [
            {"X-Forwarded-For": "127.0.0.1"},
            {"X-Forwarded-Proto": "https"},
            {"Forwarded": "for=127.0.0.1"},
            {"X-Real-IP": "127.0.0.1"},
            {"Via": "1.1 proxy"},
        ],
    )
    def test_a_proxy_on_this_machine_is_not_this_machine(self, client: TestClient, headers: dict[str, str]) -> None:
        local = from_address(client, "127.0.0.1")
        problem(local.get("/metrics", headers=headers), 401)
        assert local.get("/metrics", headers={**headers, **bearer("read-key")}).status_code == 200

    def test_nor_is_what_uvicorn_took_from_a_proxy(self, client: TestClient) -> None:
        problem(from_address(client, "127.0.0.1", port=0).get("/metrics"), 401)

    def test_a_wrong_key_is_wrong_here_too(self, client: TestClient) -> None:
        local = from_address(client, "127.0.0.1")
        problem(local.get("/metrics", headers=bearer("wrong-key")), 401)
        problem(local.get("/metrics", headers=bearer("send-key")), 403)


class TestWhat:
    def test_every_kind_and_lane_is_there_from_the_start(self, client: TestClient) -> None:
        found = scrape(client)
        for kind, cls in KINDS.items():
            assert value(found, "accepted_total", kind=kind, lane=cls.lane) == 0
            assert value(found, "failed_total", kind=kind, lane=cls.lane, cause="refused") == 0
            assert value(found, "emails", kind=kind, lane=cls.lane, state="held") == 0
        assert value(found, "sent_total", kind="custom", lane="bulk") == 0
        # Which no batch can have.
        assert not [key for key in found if {("kind", "password_reset"), ("lane", "bulk")} <= key[1]]
        for lane in Lane:
            assert value(found, "still_seconds", lane=lane) == value(found, "worker_nodes", lane=lane) == 0

    def test_one_email_and_what_became_of_it(self, client: TestClient, outbox: Outbox) -> None:
        email_id = outbox.accept(WelcomeEmail.sample()).id
        pair = {"kind": "welcome", "lane": "standard"}
        found = scrape(client)
        assert value(found, "accepted_total", **pair) == value(found, "emails", **pair, state="queued") == 1
        outbox.claim(email_id, "t", "node")
        outbox.settle(email_id, "t", "failed", code=550, reply="no such user", error="550", cap=1000)
        found = scrape(client)
        assert (
            value(found, "failed_total", **pair, cause="refused")
            == value(found, "emails", **pair, state="failed")
            == 1
        )
        assert value(found, "emails", **pair, state="queued") == 0
        outbox.retry(email_id)
        found = scrape(client)
        assert value(found, "revived_total", **pair) == value(found, "emails", **pair, state="queued") == 1
        assert value(found, "failed_total", **pair, cause="refused") == 1

    def test_nobody_is_named(self, client: TestClient, outbox: Outbox) -> None:
        email = WelcomeEmail(to="zelda.q@planted.example", name="Zelda Planted")
        email_id = outbox.accept(email).id
        outbox.claim(email_id, "planted-token", "node@planted-host")
        reply = "550 zelda.q@planted.example is unknown"
        outbox.settle(email_id, "planted-token", "release", gate="smtp", error=reply, cap=60_000)
        text = client.get("/metrics").text
        assert "planted" not in text.lower()
        assert email_id not in text
        assert "@" not in text

    def test_what_holds_mail_back(self, open_api: Callable[..., TestClient]) -> None:
        from utils.composition import get_outbox

        client = open_api(**LIMITS)
        outbox = get_outbox()
        email_id = outbox.accept(WelcomeEmail.sample()).id
        outbox.claim(email_id, "t", "node", "permit")
        found = scrape(client)
        assert value(found, "limit_per_day") == 1000
        assert value(found, "used_of_day") == value(found, "used_connections") == 1
        assert value(found, "limited", lane="standard", by="gate") == 0
        outbox.settle(email_id, "t", "release", gate="smtp", slow=True, error="no", cap=60_000)
        time.sleep(0.01)
        found = scrape(client)
        assert value(found, "gate_closed_seconds", gate="account") > 0
        assert value(found, "gate_closed_seconds", gate="bulk") == 0
        assert value(found, "limited", lane="critical", by="gate") == 1
        assert value(found, "limited", lane="standard", by="pace") == 1
        assert value(found, "pace_limit_per_second", lane="standard") > 0

    def test_a_node_tells_of_its_smtp_connections(
        self, client: TestClient, outbox: Outbox, smtp: SmtpServer, valkey: Valkey
    ) -> None:
        transport = SmtpTransport(SmtpConfig(smtp.host, smtp.port))
        transport.send(Envelope("a@example.com", "b@example.com"), b"Subject: x\r\n\r\nx\r\n")
        Reporter(outbox.wire, "mail@web1", transport.measured, threads=7).report()
        node = {"node": "mail", "host": "web1"}
        found = scrape(client)
        assert value(found, "smtp_connections_open", **node) == 1
        assert value(found, "smtp_connections_in_use", **node) == 0
        assert value(found, "smtp_connections_limit", **node) == 7
        assert value(found, "smtp_seconds_count", **node, answer="taken") == 1
        assert value(found, "smtp_seconds_bucket", **node, answer="taken", le="600.0") == 1
        assert value(found, "smtp_seconds_bucket", **node, answer="none", le="+Inf") == 0
        transport.close()
        # Silent for a while: its connections are history, what it counted is not yet.
        with valkey.client() as direct:
            key = outbox.wire.key("reports")
            at, _, said = str(direct.hget(key, "mail@web1")).partition(" ")
            direct.hset(key, "mail@web1", f"{int(at) - 60_000} {said}")
        found = scrape(client)
        assert value(found, "smtp_seconds_count", **node, answer="taken") == 1
        assert ("lms_mail_smtp_connections_open", frozenset(node.items())) not in found

    def test_openmetrics_where_it_is_asked_for(self, client: TestClient) -> None:
        asked = client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
        assert asked.headers["content-type"].startswith("application/openmetrics-text")
        assert asked.text.endswith("# EOF\n")
        assert client.get("/metrics").headers["content-type"].startswith("text/plain; version=0.0.4")

    def test_a_large_outbox_takes_no_longer(self, client: TestClient, outbox: Outbox, store: Any) -> None:
        """Counted in commands that Redis runs, not in time: a scan would make thousands of them."""
        for number in range(300):
            outbox.accept(WelcomeEmail(to=f"p{number}@example.com", name="Ada"))

        def commands() -> int:
            stats = store.info("commandstats")
            return sum(one["calls"] for name, one in stats.items() if not name.endswith(("info", "client|setinfo")))

        scrape(client)
        before = commands()
        scrape(client)
        assert commands() - before < 100


class TestWithoutRedis:
    @pytest.fixture
    def own(self, tmp_path: Path) -> Iterator[Valkey]:
        with Valkey(tmp_path) as server:
            yield server

    def test_stopped_frozen_and_back(self, own: Valkey, open_api: Callable[..., TestClient]) -> None:
        client = open_api(REDIS_URL=own.url)
        assert value(scrape(client), "redis_up") == 1
        own.freeze()
        for _ in range(2):
            begun = time.monotonic()
            assert scrape(client) == {("lms_mail_redis_up", frozenset()): 0}
            assert time.monotonic() - begun < 2
        own.thaw()
        own.stop()
        time.sleep(1.1)  # it fails at once for a second after a timeout
        assert scrape(client) == {("lms_mail_redis_up", frozenset()): 0}
        own.start()
        assert value(scrape(client), "redis_up") == 1

    def test_full_and_forbidden(self, own: Valkey, open_api: Callable[..., TestClient]) -> None:
        with own.client() as direct:
            direct.acl_setuser("mail", enabled=True, passwords=["+secret"], keys=["*"], commands=["+@all", "-info"])
            client = open_api(REDIS_URL=own.url.replace("//", "//mail:secret@"))
            direct.config_set("maxmemory", 1_000)
            found = scrape(client)
        assert value(found, "redis_up") == 1
        assert ("lms_mail_redis_memory_bytes", frozenset()) not in found


class TestPrometheus:
    def test_it_likes_our_metrics(self, open_api: Callable[..., TestClient]) -> None:
        answer = open_api(**LIMITS).get("/metrics")
        assert promtool("check", "metrics", given=answer.text) == ""

    def test_the_rules_are_valid_and_fire_when_they_should(self) -> None:
        assert "SUCCESS" in promtool("check", "rules", "lms-mail.rules.yml")
        assert "SUCCESS" in promtool("test", "rules", "lms-mail.test.yml")

    def test_a_rule_that_is_wrong_is_noticed(self, tmp_path: Path) -> None:
        (tmp_path / "lms-mail.test.yml").write_text(TESTS)
        (tmp_path / "lms-mail.rules.yml").write_text(RULES.replace("still_seconds) > 300", "still_seconds) > 3000"))
        with pytest.raises(AssertionError, match="LmsMailLaneStandsStill"):
            promtool("test", "rules", "lms-mail.test.yml", cwd=tmp_path)

    def test_the_configuration_is_valid(self, tmp_path: Path) -> None:
        key = tmp_path / "key"
        key.write_text("read-key")
        example = (PROMETHEUS / "prometheus.yml").read_text()
        (tmp_path / "prometheus.yml").write_text(example.replace("/etc/prometheus/lms-mail.key", str(key)))
        (tmp_path / "lms-mail.rules.yml").write_text(RULES)
        assert "SUCCESS" in promtool("check", "config", "prometheus.yml", cwd=tmp_path)

    def test_every_alert_says_the_way_out_and_is_seen_to_fire(self) -> None:
        names = re.findall(r"- alert: (\w+)", RULES)
        assert len(names) == len(set(names)) == RULES.count("summary:") == RULES.count("description:")
        seen = set(re.findall(r"exp_samples: \[\{labels: 'ALERTS\{alertname=\"(\w+)\"", TESTS))
        seen |= set(re.findall(r"alertname: (\w+)\n\s+exp_alerts:\n", TESTS))
        assert seen == set(names)

    def test_every_number_in_a_rule_exists(self, open_api: Callable[..., TestClient]) -> None:
        from utils.composition import get_outbox

        client = open_api(**LIMITS)
        transport = SmtpTransport(SmtpConfig("127.0.0.1", 1))
        Reporter(get_outbox().wire, "mail@web1", transport.measured, threads=7).report()
        text = client.get("/metrics").text
        given = {name for name, _ in samples(text)} | set(re.findall(r"# TYPE (\S+)", text))
        used = {name for source in (RULES, TESTS) for name in NAME.findall(source)}
        assert used
        assert used <= given
