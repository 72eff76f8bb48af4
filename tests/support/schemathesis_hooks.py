"""What schemathesis does not know of its own."""

import json
from typing import Any

import schemathesis


@schemathesis.serializer("application/x-ndjson")
def lines(_: schemathesis.SerializationContext, value: Any) -> bytes:
    """What it made for a string schema, as the body."""
    text = value if isinstance(value, str) else json.dumps(value)
    return value if isinstance(value, bytes) else text.encode(errors="surrogatepass")
