"""The API in this process, over a real Valkey and a real SMTP server."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import redis

from mail.outbox import Outbox
from settings import get_settings
from support.api import ADMIN, TestClient
from support.console import sign_in
from support.smtp_server import SmtpServer


@pytest.fixture
def open_api(configure: Callable[..., None]) -> Iterator[Callable[..., TestClient]]:
    """`open_api(NAME="value")`: a client of the API under these settings; it sends the key with every scope."""
    with ExitStack() as stack:

        def build(**env: str) -> TestClient:
            configure(**env)
            from main import create_app  # reads the settings when it is imported first

            app = create_app(get_settings())
            return stack.enter_context(TestClient(app, headers=ADMIN, raise_server_exceptions=False))

        yield build


@pytest.fixture
def client(open_api: Callable[..., TestClient]) -> TestClient:
    return open_api()


@pytest.fixture
def stranger(client: TestClient) -> TestClient:
    """The same API to somebody without a key."""
    return TestClient(client.app, raise_server_exceptions=False)


@pytest.fixture
def outbox(client: TestClient) -> Outbox:
    """The outbox of the API."""
    from utils.composition import get_outbox

    return get_outbox()


@pytest.fixture
def untouched(store: "redis.Redis", smtp: SmtpServer) -> Callable[[], None]:
    """Fails when anything was stored or sent."""

    def check() -> None:
        prefix = get_settings().key_prefix
        assert list(store.scan_iter(f"{prefix}*", count=1000)) == []
        assert smtp.connections == 0

    return check


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
    """One that is signed in to the console with a key for everything."""
    sign_in(browser, "all-key")
    return browser
