"""`GET /metrics`: what Prometheus scrapes. docs/monitoring.md explains every metric."""

import ipaddress
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any

from fastapi import APIRouter, HTTPException, Request, Response
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from api.auth import DESCRIBED, require_caller
from api.problems import responses
from mail.answers import Numbers
from mail.errors import OutboxUnavailable
from mail.kinds import KINDS, Lane
from mail.measures import CAUSES, Measurement, Move, NodeReport
from mail.outbox import Outbox
from mail.records import State
from mail.timings import BOUNDS
from settings import Scope
from utils.composition import get_outbox

PREFIX = "lms_mail_"

# What a proxy adds. Behind one every caller seems to be this machine.
_FORWARDED = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-IP", "Via")

router = APIRouter(tags=["health"], dependencies=DESCRIBED)


@router.get("/metrics", summary="Numbers for Prometheus", response_class=Response, responses=responses(401, 403, 429))
def metrics(request: Request) -> Response:
    """To a key with the scope `read`, and to this machine itself. Without Redis the answer is `lms_mail_redis_up 0`
    and nothing else: Prometheus drops the body of a 503, and could not tell a lost Redis from a lost API.
    """
    _admit(request)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(MailCollector(get_outbox()))
    encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    return Response(encode(registry), headers={"Content-Type": content_type})


def _admit(request: Request) -> None:
    if _is_local(request) and "Authorization" not in request.headers and "X-API-Key" not in request.headers:
        return
    if Scope.READ not in require_caller(request).scopes:
        raise HTTPException(403, f"This key lacks the scope {Scope.READ}.")


def _is_local(request: Request) -> bool:
    # Port 0 is what uvicorn puts where it believes a proxy's word about the caller.
    if request.client is None or not request.client.port or any(name in request.headers for name in _FORWARDED):
        return False
    try:
        address = ipaddress.ip_address(request.client.host)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


class MailCollector(Collector):
    """Measures anew for each scrape: two calls to Redis, whatever the outbox holds."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox

    def collect(self) -> Iterator[Metric]:
        try:
            with self._outbox.answered():
                found, redis = self._outbox.measure(), self._outbox.info()
        except OutboxUnavailable:
            yield _gauge("redis_up", "Whether Redis answers", 0)
            return
        yield _gauge("redis_up", "Whether Redis answers", 1)
        yield from _counts(found)
        yield from _lanes(found)
        yield from _limits(found, self._outbox.numbers)
        yield from _nodes(found)
        yield from _redis(redis)
        yield _gauge("alerts_pending", "Alerts that the webhook's receiver has not taken yet", found.alerts_pending)


_MOVES: Mapping[State, tuple[str, str]] = {
    State.SENT: ("sent", "Emails that the SMTP server has taken"),
    State.FAILED: ("failed", "Emails that became dead letters"),
    State.HELD: ("held", "Emails set aside because nobody knows whether the server took them"),
    State.CANCELLED: ("cancelled", "Emails cancelled by hand, with their batch, or by a newer one"),
    State.EXPIRED: ("expired", "Emails whose time ran out before they could be sent"),
    State.SUPPRESSED: ("suppressed", "Emails not sent because the recipient does not want them"),
    State.RETRYING: ("retries", "Attempts that ended with the email waiting for another one"),
}


# What can occur is there from the start, with 0: Prometheus does not see a counter's first step from nothing.
_PAIRS = [
    (kind, lane)
    for kind, cls in KINDS.items()
    for lane in ({cls.lane} if cls.secret_fields() else {cls.lane, Lane.BULK})
]
_NONE = {(*pair, state): 0 for pair in _PAIRS for state in State}


def _counts(found: Measurement) -> Iterator[Metric]:
    def total(name: str, text: str, moves: Iterable[Move], causes: tuple[str, ...] = ()) -> Metric:
        family = CounterMetricFamily(PREFIX + name, text, labels=("kind", "lane", *(["cause"] if causes else [])))
        sums = Counter({(*pair, cause): 0 for pair in _PAIRS for cause in causes or ("",)})
        for move in moves:
            sums[move.kind, move.lane, (move.cause or "") if causes else ""] += move.number
        for (kind, lane, cause), count in sorted(sums.items()):
            family.add_metric((kind, lane, *([cause] if causes else [])), count)
        return family

    def into(*states: State) -> Iterator[Move]:
        return (move for move in found.moves if move.after in states)

    yield total("accepted", "Emails accepted", (move for move in found.moves if move.before is None))
    for state, (name, text) in _MOVES.items():
        yield total(name, text, into(state), CAUSES.get(state, ()))
    revived = (move for move in into(State.QUEUED) if move.before in (State.FAILED, State.HELD))
    yield total("revived", "Failed or held emails sent again by hand", revived)
    yield total("removed", "Records removed after OUTBOX_RETENTION_DAYS", (m for m in found.moves if m.after is None))
    copies = CounterMetricFamily(
        f"{PREFIX}possible_duplicates", "Emails of which a second copy is possible", labels=("kind", "lane")
    )
    for pair, count in sorted({**dict.fromkeys(_PAIRS, 0), **found.copies}.items()):
        copies.add_metric(pair, count)
    yield copies
    emails = GaugeMetricFamily(f"{PREFIX}emails", "Records in the outbox", labels=("kind", "lane", "state"))
    for key, count in sorted({**_NONE, **found.emails()}.items()):
        emails.add_metric(key, count)
    yield emails


def _lanes(found: Measurement) -> Iterator[Metric]:
    lanes = found.lanes.items()

    def per_lane(name: str, text: str, values: Mapping[Lane, float]) -> Metric:
        return _family(name, text, ("lane",), (((lane,), value) for lane, value in values.items()))

    yield per_lane("due", "Emails (of bulk: chunks) whose time has come", {lane: one.due for lane, one in lanes})
    yield per_lane(
        "oldest_due_seconds", "Age of the oldest that is due", {lane: one.oldest_due for lane, one in lanes}
    )
    yield per_lane(
        "still_seconds",
        "For how long no worker has asked for mail that it should have asked for",
        {lane: one.still for lane, one in lanes},
    )
    yield per_lane("worker_nodes", "Worker nodes that serve the lane", {lane: one.nodes for lane, one in lanes})
    yield per_lane("pace_per_second", "Emails per second taken lately", {lane: one.per_second for lane, one in lanes})
    yield per_lane(
        "pace_limit_per_second",
        "Emails per second, where the SMTP server asked for patience",
        {lane: one.pace for lane, one in lanes if one.pace is not None},
    )
    gates = {"account": found.account_closed, **{lane.value: one.closed for lane, one in lanes}}
    yield _family(
        "gate_closed_seconds",
        "For how long the SMTP server's faults (account) or refusals (lane) have kept mail back; 0: open",
        ("gate",),
        (((gate,), (found.at - hold.since).total_seconds() if hold else 0) for gate, hold in gates.items()),
    )
    yield _family(
        "limited",
        "Whether this holds the lane back now",
        ("lane", "by"),
        (((lane, by), holds) for lane, one in lanes for by, holds in sorted(one.limits.items())),
    )


def _limits(found: Measurement, numbers: Numbers) -> Iterator[Metric]:
    if numbers.max_per_second:
        yield _gauge("limit_per_second", "SMTP_MAX_PER_SECOND", numbers.max_per_second)
    if numbers.max_per_day:
        yield _gauge("limit_per_day", "SMTP_MAX_PER_DAY", numbers.max_per_day)
        yield _gauge("used_of_day", "Emails that count against SMTP_MAX_PER_DAY now", found.used_today)
    if numbers.max_connections:
        yield _gauge("limit_connections", "SMTP_MAX_CONNECTIONS", numbers.max_connections)
        yield _gauge("used_connections", "Permits for SMTP connections held by all nodes", found.connections)


def _nodes(found: Measurement) -> Iterator[Metric]:
    alive = {_names(node): report for node, report in found.nodes.items() if report.fresh}

    def per_node(name: str, text: str, field: str) -> Metric:
        values = ((labels, getattr(report, field)) for labels, report in alive.items())
        return _family(name, text, ("node", "host"), values)

    yield per_node("smtp_connections_in_use", "SMTP connections with a mail on them", "in_use")
    yield per_node("smtp_connections_open", "SMTP connections, idle ones among them", "open")
    yield per_node("smtp_connections_limit", "The most that the node opens: one per thread", "threads")
    yield _seconds(found.nodes)


def _seconds(nodes: Mapping[str, NodeReport]) -> Metric:
    family = HistogramMetricFamily(
        f"{PREFIX}smtp_seconds",
        "Time from handing a mail to the SMTP server to its answer, connecting included",
        labels=("node", "host", "answer"),
    )
    names = [*(str(bound) for bound in BOUNDS), "+Inf"]
    for node, report in nodes.items():
        for answer, histogram in report.histograms.items():
            buckets = zip(names, map(float, accumulate(histogram.buckets)), strict=True)
            family.add_metric((*_names(node), answer), [*buckets], histogram.total)
    return family


def _names(node: str) -> tuple[str, str]:
    """`mail@web1` as node and host: nothing in the answer looks like an address."""
    name, _, host = node.partition("@")
    return name, host


def _redis(info: Mapping[str, Any]) -> Iterator[Metric]:
    if not info:
        return  # its ACL forbids INFO
    yield _gauge("redis_memory_bytes", "Memory that Redis uses", info["used_memory"])
    yield _gauge("redis_memory_limit_bytes", "Redis's maxmemory; 0: none", info["maxmemory"])
    yield _gauge("redis_aof_enabled", "Whether Redis keeps an append-only file", info["aof_enabled"])
    written = info.get("aof_last_write_status") == "ok"
    yield _gauge("redis_aof_ok", "Whether its last write to the append-only file went well", written)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(PREFIX + name, text, value=float(value))


def _family(name: str, text: str, labels: tuple[str, ...], values: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    family = GaugeMetricFamily(PREFIX + name, text, labels=labels)
    for key, value in values:
        family.add_metric(key, float(value))
    return family
