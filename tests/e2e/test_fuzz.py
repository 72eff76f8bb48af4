"""Hostile requests against a real API, with a real worker and SMTP server behind it: no server error, and no mail
that is anything but ours."""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import httpx
import pytest

from support.fuzz import Asked, fault_of, requests
from support.processes import wait_until
from support.service import Service

CLIENTS = 4


@pytest.fixture
def service(build: Callable[..., Service]) -> Service:
    service = build(
        ALLOWED_LINK_HOSTS="lms.example.com", API_REQUESTS_PER_MINUTE="0", RECIPIENT_HOURLY_LIMIT="1000000"
    )
    service.worker(lanes="critical,standard,bulk")
    service.api()
    return service


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(1_200, id="short"),
        pytest.param(100_000, id="long", marks=[pytest.mark.fuzz, pytest.mark.timeout(5_400)]),
    ],
)
def test_nothing_breaks_and_nothing_gets_out(service: Service, count: int) -> None:
    answers: Counter[int] = Counter()
    mails: Counter[str | None] = Counter()

    def look_at_mails() -> None:
        while service.smtp.messages:
            mails[fault_of(service.smtp.messages.pop())] += 1

    def attack(seed: int) -> Iterator[tuple[int, Asked]]:
        with httpx.Client(base_url=service.http.base_url, timeout=30) as client:
            for asked in islice(requests(seed), count // CLIENTS):
                answer = client.request(asked.method, asked.path, headers=asked.headers, content=asked.content)
                answers[answer.status_code] += 1
                if answer.status_code >= 500:
                    yield answer.status_code, asked
                if seed == 0:
                    look_at_mails()

    with ThreadPoolExecutor(CLIENTS) as pool:
        broken = [one for found in pool.map(lambda seed: list(attack(seed)), range(CLIENTS)) for one in found]
    assert broken == []
    # Mails scheduled for later are never sent here.
    wait_until(
        lambda: not {"queued", "sending", "retrying"} & set(service.states()), timeout=300, what="the last mail"
    )
    look_at_mails()
    print(f"{sum(answers.values())} requests: {dict(sorted(answers.items()))}; {sum(mails.values())} mails: {mails}")
    assert set(mails) == {None}
    assert sum(mails.values()) > count / 20
    assert {200, 202, 401, 403, 404, 422} <= set(answers)
    # Nothing that was taken makes a page fail.
    cursor: str | None = ""
    while cursor is not None:
        page = service.http.get("/api/emails", params={"limit": 200, **({"cursor": cursor} if cursor else {})})
        assert page.status_code == 200
        cursor = page.json()["next"]
