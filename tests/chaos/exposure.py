"""What gets out of a service: secrets (R9), and what hostile input makes of its mails (R10)."""

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from random import Random
from typing import Any

import httpx
import redis

from chaos.driver import Load, Request, Stand
from chaos.faults import WAIT
from chaos.tally import Lab, Tally
from support.fuzz import INJECTED, PRODUCT, body_of, changed
from support.needles import Needles
from support.processes import free_port, wait_until

# R9

TOKEN = "pl4ntedS3cretOfAResetLinkQw9"
LINK = f"https://lms.example.com/reset?token={TOKEN}"


class Resets(Load):
    """Mails with a secret in each."""

    def request(self, to: str) -> Request:
        return self._service.request(to, link=LINK)


def secrets(lab: Lab) -> Tally:
    """A mail with a reset token is refused once with words that quote it, and sent. Where does the token show?"""
    tally = Tally()
    with lab.stand() as stand:
        stand.load(1).wait()
        stand.wait_for_end(timeout=30)
        port = free_port()
        with stand.service.flower(port), httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as flower:
            wait_until(lambda: _asked(flower, "/api/workers?refresh=1"), timeout=60, what="Flower to see the nodes")
            stand.smtp.reply("dot", f"451 4.3.0 looks like spam: {LINK}", times=1)
            stand.smtp.delay("dot", 10)  # for as long as it takes to look everywhere
            stand.load(1, kind=Resets)
            stand.wait_for_sessions(1)
            places = _places(stand, flower)
            wait_until(lambda: stand.smtp.verbs().count("DATA") >= 3, timeout=WAIT, what="the second attempt")
            places += _places(stand, flower)
            account = stand.account(timeout=WAIT)
            places += _places(stand, flower)
        tally.add(account)
    tally.remark = "found in: " + ", ".join(f"{place} {n}" for place, n in sorted(places.items()))
    if not places:
        tally.remark = "found nowhere"
    if stand.service.records:
        tally.demand(not places, tally.remark)
    return tally


def _asked(flower: httpx.Client, path: str) -> Mapping[str, Any]:
    with suppress(httpx.TransportError, ValueError):
        found: Mapping[str, Any] = flower.get(path).json()
        return found
    return {}


def _places(stand: Stand, flower: httpx.Client) -> Counter[str]:
    """Where the token is, in any spelling."""
    found = Needles(TOKEN).found
    seen: Counter[str] = Counter()
    for question in ("active", "reserved", "scheduled"):
        with stand.service.inspect(question) as asking:
            asking.wait()
            seen["inspect"] += bool(found(asking.log.read_bytes()))
            asking.log.unlink()
    pages = ["/api/tasks", "/tasks", *(f"/task/{task}" for task in _asked(flower, "/api/tasks"))]
    seen["Flower"] += any(found(flower.get(page).content) for page in pages)
    with redis.Redis.from_url(stand.valkey.url) as client:
        client.config_set("rdbcompression", "no")
        seen["Redis"] += any(found(key + (client.dump(key) or b"")) for key in client.scan_iter(b"*"))
    for path in stand.directory.rglob("*"):
        if path.is_file() and path.suffix in {".log", ".aof"}:
            seen["logs" if path.suffix == ".log" else "append-only file"] += bool(found(path.read_bytes()))
    return +seen


# R10


class Hostile(Load):
    """Mails that are right but for a few of their fields, and now and then what only looks like JSON."""

    def __init__(self, *arguments: Any) -> None:
        self._random = Random(0)
        super().__init__(*arguments)

    def request(self, to: str) -> Request:
        wanted = self._service.request(to, link=LINK)
        assert isinstance(wanted.body, Mapping)
        names = [name for name in wanted.body if name not in {"to", "kind"}]
        return wanted._replace(body=body_of(self._random, changed(self._random, dict(wanted.body), names)))


def hostile(lab: Lab) -> Tally:
    """Line breaks, templates, markup, a megabyte, NUL, lone surrogates and broken JSON in every field."""
    tally = Tally()
    with lab.stand() as stand:
        load = stand.load(300 if lab.short else 5_000, kind=Hostile)
        load.wait()
        account = stand.account(timeout=2 * WAIT)
        tally.add(account)
        mails = stand.smtp.messages
        injected = sum(INJECTED in one.message or "Bcc" in one.message or len(one.recipients) > 1 for one in mails)
        run = sum(PRODUCT.encode() in one.data for one in mails)
        failures = sum(n for code, n in load.codes.items() if code >= 500)
    tally.remark = (
        f"{sum(load.codes.values()):,} requests, {failures} of them 5xx; {injected} injected, {run} templates run"
    )
    tally.demand(not failures and not injected and not run, tally.remark)
    return tally


EXPOSURE: dict[str, tuple[str, Callable[[Lab], Tally]]] = {
    "R9": ("a reset token, looked for everywhere while its mail is refused, retried and sent", secrets),
    "R10": ("hostile input", hostile),
}
