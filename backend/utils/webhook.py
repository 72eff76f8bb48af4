"""Posts alerts to a webhook, signed as https://www.standardwebhooks.com has it."""

import http.client
import socket
import ssl
import threading
from contextlib import suppress
from datetime import UTC, datetime
from urllib.parse import urlsplit, urlunsplit

from standardwebhooks import Webhook as Signer

from mail.alerts import NotPosted

PATIENCE = 10.0  # seconds for all of it


class Webhook:
    """One receiver. Redirects are not followed: a signed alert goes where it was told to go, or nowhere."""

    def __init__(self, url: str, secret: str) -> None:
        """`secret`: `whsec_` and 24 to 64 bytes in base64."""
        self._parts = urlsplit(url)
        self._target = urlunsplit(("", "", self._parts.path or "/", self._parts.query, ""))
        self._signer = Signer(secret)

    def __call__(self, message_id: str, body: str) -> None:
        """Post a JSON body. The same `message_id` tells the receiver that it is the same alert.

        Raises:
            NotPosted: no 2xx came in time.
        """
        at = datetime.now(UTC)
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "lms-mail",
            "webhook-id": message_id,
            "webhook-timestamp": str(int(at.timestamp())),
            "webhook-signature": self._signer.sign(message_id, at, body),
        }
        connection = self._connection()
        # A timeout of the socket is for each read: a receiver that drips could take for ever.
        deadline = threading.Timer(PATIENCE, _cut, [connection])
        deadline.daemon = True
        deadline.start()
        try:
            connection.request("POST", self._target, body.encode(), headers)
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException) as error:
            raise NotPosted(f"the receiver cannot be reached or does not answer: {type(error).__name__}") from error
        finally:
            deadline.cancel()
            connection.close()
        if not 200 <= status < 300:
            raise NotPosted(f"the receiver answered {status}")

    def _connection(self) -> http.client.HTTPConnection:
        host, port = self._parts.hostname or "", self._parts.port
        if self._parts.scheme == "https":
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(host, port, timeout=PATIENCE, context=context)
        return http.client.HTTPConnection(host, port, timeout=PATIENCE)


def _cut(connection: http.client.HTTPConnection) -> None:
    sock = connection.sock
    if sock is not None:
        with suppress(OSError):
            # Not SSLSocket.shutdown, which takes the TLS object from under the thread that reads.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)
