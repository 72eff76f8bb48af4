"""Hostile requests without end, the same ones for the same seed, and what no mail may be."""

import json
import re
from collections.abc import Iterator
from email import message_from_string
from email.errors import NonASCIILocalPartDefect
from email.message import EmailMessage
from email.policy import default
from random import Random
from typing import Any, NamedTuple

from mail.kinds import KINDS
from support.smtp_dialogue import Received

# Whoever ran one of these would write the product.
FACTORS, PRODUCT = "7919*7907", str(7919 * 7907)
TEMPLATES = (
    f"{{{{ {FACTORS} }}}}",
    f"{{% print({FACTORS}) %}}",
    f"{{% set x = {FACTORS} %}}{{{{ x }}}}",
    f"${{{FACTORS}}}",
    f"#{{{FACTORS}}}",
    f"<%= {FACTORS} %>",
    "{{ brand.__class__.__mro__ }}",
    "{{ a }}",
    "{{ a }}{{ b }}",
    "{{",
    "}}",
    "%s%n%d",
)
INJECTED = "X-Injected"
INJECTIONS = tuple(
    f"{before}{line_end}{INJECTED}: yes{line_end}Bcc: evil@evil.example{line_end}{line_end}<script>evil()</script>"
    for before in ("Ada", "ada@example.com", "")
    for line_end in ("\r\n", "\n", "\r", "\0", "\v", "\x85", "\u2028", "%0d%0a", "=0D=0A", "=?utf-8?q?=0D=0A?=")
)
ODD = (
    *(
        "",
        " ",
        "\0",
        "\ud800",
        "\udfff\ud800",
        "\u202eevil\u202c",
        "\u2066",
        "\ufeff",
        "\u200b",
        "\xa0",
        "e\u0301" * 40,
    ),
    *("A" * 101, "x" * 1_000_000, "😀" * 99, "<b>Ada</b>", '"', "\\", "'--", "<!--", "]]>", "</p></table>", "&#0;"),
    *(
        "x" * 65 + "@example.com",
        "x" * 64 + "@" + "y." * 90 + "com",
        '"a b"@example.com',
        "a@b@c.com",
        "ada@[127.0.0.1]",
    ),
    *(
        "ada@bücher.example",
        "李雷@例え.テスト",
        "ada@xn--a.example",
        "ada+x@example.com",
        "ada@example.com\u3002evil.com",
    ),
    *("javascript:evil()", "https://evil.example", "//evil.example", "www.evil.example", "evil.com", "https://"),
    *("https://lms.example.com/x", "https://lms.example.com@evil.example", "https://lms.example.com\\@evil.example"),
    *("2040-01-01T00:00:00Z", "1970-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "0000-00-00", "NaN", "1e999"),
)
NO_STRINGS: tuple[Any, ...] = (
    *(None, True, 0, -1, 2**63, 2**64, 10**40, 0.1, 1e308, float("nan"), float("inf"), [], {}, [[]], {"": {}}),
    *([["ada@example.com"] * 3], {"to": "ada@example.com"}, [None] * 50, {"__class__": "x", "__proto__": {}}),
)
FIELDS = sorted({name for kind in KINDS.values() for name in kind.model_fields} | {"send_at", "expires_at", "bcc"})
VERBS = ("pause", "resume", "cancel", "retry-failed", "release-held", "drop-held")
OUR_HEADERS = {
    *("date", "from", "to", "message-id", "subject", "auto-submitted", "x-auto-response-suppress", "mime-version"),
    *("reply-to", "content-type", "content-transfer-encoding"),
}


class Asked(NamedTuple):
    """One request."""

    method: str
    path: str
    headers: dict[str, bytes]
    content: bytes


def requests(seed: int) -> Iterator[Asked]:
    """Requests without end."""
    random = Random(seed)
    ids = [""]
    while True:
        match random.choices(("email", "wait", "batch", "lines", "list", "one"), (40, 12, 14, 8, 14, 12))[0]:
            case "email":
                yield Asked("POST", "/api/emails", _headers(random), body_of(random, _email(random)))
            case "wait":
                yield Asked("POST", "/api/emails?wait=true", _headers(random), body_of(random, _email(random)))
            case "batch":
                batch = {**_head(random), "recipients": [_recipient(random) for _ in range(random.randrange(6))]}
                yield Asked("POST", "/api/batches", _headers(random), body_of(random, batch))
            case "lines":
                lines = [_head(random), *(_recipient(random) for _ in range(random.randrange(6)))]
                content = b"\n".join(body_of(random, line) for line in lines) + b"\n"
                yield Asked("POST", "/api/batches", _headers(random, "application/x-ndjson"), content)
            case "list":
                names = ("to", "kind", "state", "batch", "cursor", "limit", "missed", "x")
                query = "&".join(f"{name}={_escaped(_odd(random))}" for name in random.sample(names, 2))
                path = random.choice(("/api/emails", "/api/batches", "/api/batches/x/recipients"))
                yield Asked("GET", f"{path}?{query}", _headers(random), b"")
            case "one":
                place = random.choice(("emails", "batches", "tasks"))
                path = f"/api/{place}/{_escaped(_odd(random)) or random.choice(ids)}"
                if place == "batches" and random.random() < 0.5:
                    yield Asked("POST", f"{path}/{random.choice(VERBS)}", _headers(random), b"")
                elif place == "emails" and random.random() < 0.5:
                    yield Asked("POST", f"{path}/{random.choice(('retry', 'cancel'))}", _headers(random), b"")
                else:
                    yield Asked("GET", path, _headers(random), b"")


def _odd(random: Random) -> str:
    word = random.choice((*TEMPLATES, *INJECTIONS, *ODD))
    match random.randrange(8):
        case 0:
            return word + random.choice((*TEMPLATES, *INJECTIONS, *ODD[:20]))
        case 1:
            return "".join(chr(random.choice((random.randrange(128), random.randrange(0x11_0000)))) for _ in range(9))
    return word


def _escaped(text: str) -> str:
    return "".join(f"%{byte:02x}" for byte in text[:300].encode(errors="surrogatepass"))


def changed(random: Random, fields: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """A few of the fields, made hostile."""
    for _ in range(random.choice((0, 1, 1, 1, 2, 4))):
        value = random.choice(NO_STRINGS) if random.random() < 0.15 else _odd(random)
        fields[random.choice(names)] = value
    return fields


def _email(random: Random) -> dict[str, Any]:
    kind = KINDS[random.choice(list(KINDS))]
    email = {
        **kind.sample().model_dump(mode="json", exclude_none=True),
        "to": f"p{random.randrange(10**9)}@example.com",
    }
    names = [*kind.model_fields] if random.random() < 0.9 else FIELDS
    return changed(random, email, names)


def _head(random: Random) -> dict[str, Any]:
    free = {"subject": "News for {{ a }}", "html": "<p>{{ a }} <b>{{ b }}</b> {{ name }}</p>"}
    return changed(random, free, ["subject", "html", "text", "kind", "reply_to", "from_name", "course_id", "send_at"])


def _recipient(random: Random) -> Any:
    if random.random() < 0.03:
        return random.choice(NO_STRINGS)
    # Most are right, so that whole batches are taken.
    value = _odd(random) if random.random() < 0.3 else random.choice(TEMPLATES)
    data = (
        changed(random, {"a": value[:300], "b": "B"}, ["a", "b"]) if random.random() < 0.1 else {"a": value, "b": "B"}
    )
    return {"to": f"r{random.randrange(10**9)}@example.com", "name": "Ada", "data": data}


def body_of(random: Random, value: Any) -> bytes:
    """JSON, or now and then what only looks like it."""
    content = json.dumps(value, ensure_ascii=random.random() < 0.9).encode(errors="surrogatepass")
    if random.random() > 0.06:
        return content
    at = random.randrange(len(content) + 1)
    return random.choice(
        (
            content[:at],
            content[:at] + random.randbytes(3) + content[at:],
            content * 2,
            b"[" * 20_000 + content,
            b'{"a":' * 20_000 + content,
            content.replace(b'"', b"'"),
            content.replace(b":", b": " + b"9" * 5_000 + b",", 1),
            content.replace(b"{", b'{"to":"evil@evil.example",', 1),
            b"\xef\xbb\xbf" + content,
            content.decode(errors="replace").encode("utf-16"),
            random.randbytes(60),
        )
    )


def _headers(random: Random, media: str = "application/json") -> dict[str, bytes]:
    headers = {"Authorization": b"Bearer all-key", "Content-Type": media.encode()}
    if random.random() < 0.1:
        name = random.choice(("Idempotency-Key", "X-Request-ID", "Content-Type", "Accept", "Last-Event-ID", "Host"))
        # What a client can write into a header at all.
        headers[name] = re.sub(rb"[\0-\x1f\x7f]", b"", _odd(random)[:2_000].encode(errors="surrogatepass")).strip()
    if random.random() < 0.02:
        headers["Authorization"] = random.choice((b"", b"Bearer", b"Basic x", b"Bearer \xff", b"Bearer read-key"))
    return headers


def fault_of(received: Received) -> str | None:
    """What is wrong with a mail: a header or recipient that is not ours, a defect, a template that was run."""
    message = received.message
    if "SMTPUTF8" in received.mail_options:  # read as RFC 6532 has it, where UTF-8 in a header is none
        message = message_from_string(received.data.decode(), policy=default)
    found = _fault_of_headers(message)
    if found is None and len(received.recipients) != 1:
        found = f"recipients {received.recipients}"
    words = [str(message["Subject"]), *(part.get_content() for part in message.walk() if not part.is_multipart())]
    if found is None and any(PRODUCT in text or "<class" in text for text in words):
        found = "a template was run"
    return found


def _fault_of_headers(message: EmailMessage) -> str | None:
    names = [name.lower() for name in message]
    if len(set(names)) < len(names) or not set(names) <= OUR_HEADERS:
        return f"headers {names}"
    for part in message.walk():
        if part.defects:
            return f"defects {part.defects}"
        if part is not message and not {name.lower() for name in part} <= OUR_HEADERS:
            return f"headers of a part {part.keys()}"
    for name, value in message.items():
        defects = [one for one in value.defects if not isinstance(one, NonASCIILocalPartDefect)]
        if defects:
            return f"defects of {name}: {defects}"
    return None
