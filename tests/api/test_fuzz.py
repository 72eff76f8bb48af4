"""Whatever is posted, the API answers with 202 or with a problem, and stays able to show what it took."""

import json
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from mail.kinds import KINDS
from support.api import TestClient, faults

_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30)
_anything = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
)
_likely = st.sampled_from(
    [
        "ada@example.com",
        "Ada",
        "https://lms.example.com/x",
        "<p>x</p>",
        "2040-01-01T00:00:00Z",
        "x\r\ny",
        "\ud800",
        "",
    ]
)
_names = sorted({name for kind in KINDS.values() for name in kind.model_fields} | {"send_at", "expires_at", "cc"})


@st.composite
def _bodies(draw: st.DrawFn) -> bytes:
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200) | _anything.map(json.dumps).map(str.encode))
    kind = draw(st.sampled_from(list(KINDS)))
    changes = draw(st.dictionaries(st.sampled_from(_names), _likely | _anything, max_size=3))
    return json.dumps({**KINDS[kind].sample().model_dump(mode="json"), **changes}).encode()


def test_fuzz(open_api: Callable[..., TestClient]) -> None:
    client = open_api(RECIPIENT_HOURLY_LIMIT="1000")
    outcomes: set[int] = set()

    @settings(max_examples=200, deadline=None)  # a busy machine is no fault
    @given(_bodies())
    def attempt(content: bytes) -> None:
        answer = client.post("/api/emails", content=content, headers={"Content-Type": "application/json"})
        outcomes.add(answer.status_code)
        if answer.status_code != 202:
            assert faults(answer)

    attempt()
    assert outcomes == {202, 422}
    # Nothing that was taken in makes a page fail.
    cursor = None
    while True:
        answer = client.get("/api/emails", params={"limit": 200} | ({"cursor": cursor} if cursor else {}))
        assert answer.status_code == 200
        for item in answer.json()["items"]:
            assert client.get(f"/api/emails/{item['id']}").status_code == 200
        if (cursor := answer.json()["next"]) is None:
            break
