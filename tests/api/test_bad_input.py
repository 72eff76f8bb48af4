"""Bad input is a 4xx that names the field and never shows the input; nothing is stored, nothing is sent."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mail.kinds import KINDS, Email
from support.api import MARK, TestClient, faults, problem
from support.service import WELCOME

JSON = {"Content-Type": "application/json"}
LINKS = ("reset_url", "verification_url", "course_url", "certificate_url")
NAMES = ("name", "course_name")

every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def nothing_comes_of_it(untouched: Callable[[], None]) -> Iterator[None]:
    yield
    untouched()


def body_of(kind: str, **changes: Any) -> dict[str, Any]:
    return {**KINDS[kind].sample().model_dump(mode="json", exclude_none=True), **changes}


def strings_of(kind: type[Email]) -> list[str]:
    return [name for name in kind.model_fields if name != "kind"]


def refuses(client: TestClient, field: str, body: dict[str, Any]) -> str:
    """The message for the one field at fault."""
    # Not json=: httpx refuses to write lone surrogates.
    answer = client.post("/api/emails", content=json.dumps(body), headers=JSON)
    assert answer.status_code == 422, f"{field} took {str(body[field])[:200]!r}: {answer.text}"
    found = faults(answer)
    assert set(found) == {field}, f"{found} for {str(body[field])[:200]!r}"
    return found[field]


# Values of fields


BREAKS = {
    "CRLF": "\r\n",
    "LF": "\n",
    "CR": "\r",
    "NUL": "\0",
    "vertical tab": "\v",
    "escape": "\x1b",
    "delete": "\x7f",
    "next line": "\x85",
    "line separator": "\u2028",
    "paragraph separator": "\u2029",
    "lone surrogate": "\ud800",
    "right-to-left override": "\u202e",
    "isolate": "\u2066",
}


@every_kind
def test_header_injection(client: TestClient, kind: str) -> None:
    for field in strings_of(KINDS[kind]):
        for name, character in BREAKS.items():
            if field in ("html", "text") and name not in (
                "NUL",
                "vertical tab",
                "escape",
                "delete",
                "lone surrogate",
            ):
                continue  # bodies have lines, and may be written from right to left
            value = body_of(kind).get(field, "Registry")
            if "@" in str(value) or field == "reply_to":
                value = "ada@example.com"
            for attack in (
                f"{value}{character}Bcc: {MARK}@evil.example",
                f"{character}{value}",
                f"{value}{character}",
            ):
                refuses(client, field, body_of(kind, **{field: attack}))


NO_STRINGS = [1, 0, -1.5, 10**400, float("inf"), float("nan"), True, [], [MARK], {}, {"a": MARK}]


@every_kind
def test_wrong_type(client: TestClient, kind: str) -> None:
    for field in strings_of(KINDS[kind]):
        for value in NO_STRINGS:
            refuses(client, field, body_of(kind, **{field: value}))


@every_kind
def test_null_and_missing(client: TestClient, kind: str) -> None:
    required = [name for name, field in KINDS[kind].model_fields.items() if field.is_required()]
    assert "to" in required
    for field in required:
        refuses(client, field, body_of(kind, **{field: None}))
        body = body_of(kind)
        del body[field]
        answer = client.post("/api/emails", json=body)
        assert faults(answer) == {field: "required"}


@every_kind
def test_extra_field(client: TestClient, kind: str) -> None:
    for field in ("bcc", "cc", "headers", "id", "lane", "state", "valid_for", "wait", "To", "__class__", "wörld"):
        message = refuses(client, field, body_of(kind, **{field: MARK}))
        assert message == "unknown field; remove it"
    answer = client.post("/api/emails", content=json.dumps(body_of(kind, **{"\ud800": 1})), headers=JSON)
    assert len(faults(answer)) == 1
    assert len(client.post("/api/emails", json=body_of(kind, **{"x" * 100_000: 1})).text) < 1000


def test_unknown_kind(client: TestClient) -> None:
    for kind in (None, "", MARK, "Welcome", "welcome ", "bulk", 1, ["welcome"], {"a": 1}, "\ud800"):
        assert "welcome, password_reset" in refuses(client, "kind", {**WELCOME, "kind": kind})


def test_no_kind(client: TestClient) -> None:
    for body in ({}, {"to": "ada@example.com"}, {"Kind": "welcome"}):
        assert set(faults(client.post("/api/emails", json=body))) == {"kind"}


NO_ADDRESSES = [
    f"{'x' * 65}@example.com",
    f"ada@{'x' * 64}.com",
    f"ada@{'x.' * 125}com",
    MARK,
    "",
    " ",
    "@",
    "@example.com",
    "ada@",
    "ada@@example.com",
    "ada@example.com,bob@example.com",
    "ada@example.com;bob@example.com",
    "ada@example.com bob@example.com",
    "<ada@example.com>",
    f"{MARK} <ada@example.com>",
    '"ada" <ada@example.com>',
    "ada@example.com>",
    '"a b"@example.com',
    "ada@localhost",
    "ada@example",
    "ada@127.0.0.1",
    "ada@[127.0.0.1]",
    "ada@-example.com",
    "ada@example..com",
    "ada..x@example.com",
    ".ada@example.com",
    "ada(comment)@example.com",
    "mailto:ada@example.com",
    "ada@exa mple.com",
    "ada%bob@exämple..com",
    "x" * 100_000 + "@example.com",
]


def test_address(client: TestClient) -> None:
    for address in NO_ADDRESSES:
        for field in ("to", "reply_to"):
            refuses(client, field, {**WELCOME, field: address})


NO_LINKS = [
    f"javascript:alert('{MARK}')",
    "JavaScript:alert(1)",
    " javascript:alert(1)",
    "java\tscript:alert(1)",
    f"ftp://lms.example.com/{MARK}",
    f"data:text/html,{MARK}",
    "file:///etc/passwd",
    "mailto:ada@example.com",
    "lms.example.com/reset",
    "//lms.example.com/reset",
    "/reset",
    "www.example.com",
    MARK,
    "",
    " ",
    "https://",
    "https:///",
    "https://lms example.com/",
    "https://lms.example.com/a b",
    "https://user:pass@lms.example.com/",
    "https://lms.example.com@evil.example/",
    "https://[lms.example.com/",
    "https://lms.example.com:99999/",
    f"https://lms.example.com/{'x' * 2048}",
]


def test_link(client: TestClient) -> None:
    for link in NO_LINKS:
        for word, kind in KINDS.items():
            for field in set(LINKS) & set(kind.model_fields):
                refuses(client, field, body_of(word, **{field: link}))


NO_NAMES = [
    f"https://{MARK}.example/",
    "Ada http://evil.example",
    "www.evil.example",
    "evil.com",
    "Buy at EVIL.COM now",
    "win a prize: evil.xyz/prize",
    "",
    " ",
    "\u00a0\u2003",
    "\u200b\u200d",
    "x" * 101,
    MARK * 60_000,
]


def test_name(client: TestClient) -> None:
    for name in NO_NAMES:
        for word, kind in KINDS.items():
            for field in set(NAMES) & set(kind.model_fields):
                refuses(client, field, body_of(word, **{field: name}))


@pytest.mark.parametrize(
    "changes",
    [
        {"html": ""},
        {"html": " \n"},
        {"text": "\n\t "},
        {"text": "\u200b"},
        {"html": "x" * 500_001},
        {"text": "x" * 500_001},
        {"html": f"<script>{MARK}</script>"},
        {"html": "<p>&nbsp;<br></p>"},
        {"html": f"<img src='data:{MARK}'>"},
        {"html": "<div>" * 61 + "x"},
        {"html": "<div>" * 90_000},
        {"subject": ""},
        {"subject": " "},
        {"subject": "x" * 201},
    ],
    ids=lambda value: str(value)[:40],
)
def test_custom(client: TestClient, changes: dict[str, str]) -> None:
    [field] = changes
    refuses(client, field, body_of("custom", **changes))


def test_custom_without_a_body(client: TestClient) -> None:
    assert refuses(client, "html", body_of("custom", html=None)) == "html or text is required"


class TestForeignLinks:
    HOSTS = "lms.example.com,*.cdn.example.com"

    @pytest.fixture
    def strict(self, open_api: Callable[..., TestClient]) -> TestClient:
        return open_api(ALLOWED_LINK_HOSTS=self.HOSTS)

    @pytest.mark.parametrize(
        "link",
        [
            f"https://{MARK}.evil.example/",
            "https://lms.example.com.evil.example/",
            "https://evil-lms.example.com/",
            "https://example.com/",
            "https://cdn.example.com/",
            "https://cdn.example.com.evil.example/",
            "https://evilcdn.example.com/",
            "https://evil.example/https://lms.example.com/",
            "https://evil.example?https://lms.example.com",
            "https://evil.example#@lms.example.com",
            "https://evil.example\\@lms.example.com/",
            "https://evil.example\\.lms.example.com/",
            "HTTPS://EVIL.EXAMPLE/",
            "https://lms%2eexample%2ecom.evil.example/",
            "https://lms.example.com\u200b.evil.example/",
            "https://lms.example。com.evil.example/",
            "http://127.0.0.1/",
            "http://[::1]/",
            "https://lms.example.com.:443/",
        ],
    )
    def test_refused(self, strict: TestClient, link: str) -> None:
        for word, kind in KINDS.items():
            for field in set(LINKS) & set(kind.model_fields):
                assert self.HOSTS.replace(",", ", ") in refuses(strict, field, body_of(word, **{field: link}))
        html = link.replace("&", "&amp;")
        for body in (f'<a href="{html}">x</a>', f'<p>x</p><img src="{html}" alt="">', f"<p>go to {html}</p>"):
            refuses(strict, "html", body_of("custom", html=body))
        refuses(strict, "text", body_of("custom", text=f"go to {link}"))
        refuses(strict, "subject", body_of("custom", subject=f"go to {link.replace(chr(0x200B), '.')}"))

    @pytest.mark.parametrize(
        "link",
        ["https://lms.example.com@evil.example/", "https://lms.example.com:x@evil.example", "https:\\\\evil.example"],
    )
    def test_disguised(self, strict: TestClient, link: str) -> None:
        refuses(strict, "html", body_of("custom", html=f'<a href="{link}">x</a>'))
        refuses(strict, "text", body_of("custom", text=f"go to {link.replace(chr(92), '/')}"))


# The body as a whole


NO_OBJECTS = [
    b"",
    b" ",
    b"null",
    b"0",
    b"true",
    b"[]",
    b'"welcome"',
    b"[" + json.dumps(WELCOME).encode() + b"]",
    b"{",
    b'{"kind":"welcome"',
    b'{"kind":"welcome",}',
    b"{'kind':'welcome'}",
    json.dumps(WELCOME).encode() + b"{}",
    MARK.encode(),
    b"[" * 100_000 + b"]" * 100_000,
    b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    b'{"kind":"welcome","to":"ada@example.com","name":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"kind":"welcome","to":"ada@example.com","name":"\xff\xfe"}',
    b'{"kind":"welcome","to":"ada@example.com","name":"\xc0\xae"}',
    b'{"kind":"welcome","to":"ada@example.com","name":' + b"1" * 5000 + b"}",
    b"\x1f\x8b\x08\x00",
    "{}".encode("utf-32")[:-1],
]


def test_not_a_json_object(client: TestClient) -> None:
    for content in NO_OBJECTS:
        answer = client.post("/api/emails", content=content, headers=JSON)
        assert set(faults(answer)) == {"body"}, content[:100]


@pytest.mark.parametrize(
    "media", [None, "", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", MARK]
)
def test_wrong_content_type(client: TestClient, media: str | None) -> None:
    headers = {} if media is None else {"Content-Type": media}
    answer = client.post("/api/emails", content=json.dumps(WELCOME), headers=headers)
    assert "application/json" in faults(answer)["body"]


def test_every_fault_is_named_at_once(client: TestClient) -> None:
    body = {"kind": "course_enrollment", "to": MARK, "name": "evil.com", "course_url": "ftp://x", "cc": MARK}
    answer = client.post("/api/emails", json={**body, "send_at": MARK})
    assert set(faults(answer)) == {"to", "name", "course_name", "course_url", "cc", "send_at"}
    assert problem(answer, 422)["detail"] == "The request has 6 faults."


def test_recipients_under_test_are_for_development(open_api: Callable[..., TestClient]) -> None:
    client = open_api(
        ENVIRONMENT="production",
        API_KEYS="all:send:all-key-of-at-least-24-characters",
        ALLOWED_LINK_HOSTS="lms.example.com",
    )
    client.headers["Authorization"] = "Bearer all-key-of-at-least-24-characters"
    refuses(client, "to", {**WELCOME, "to": "ada@lms.test"})


@pytest.mark.parametrize("value", [MARK, "maybe", "2", ""])
def test_wait_is_a_boolean(client: TestClient, value: str) -> None:
    assert set(faults(client.post("/api/emails", params={"wait": value}, json=WELCOME))) == {"wait"}
