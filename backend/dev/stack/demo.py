"""`./start.sh --demo`: one mail of each kind, sent through the HTTP API, and what became of them."""

import json
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection, HTTPException
from typing import Any, NamedTuple

from dev.stack.plan import Plan
from dev.stack.ports import is_loopback, local
from mail.kinds import KINDS
from mail.records import State
from settings import Scope, Settings

PATIENCE_SECONDS = 30
WAITS = {State.SCHEDULED, State.QUEUED, State.SENDING}
SCOPES = {Scope.READ, *(Scope(kind.scope) for kind in KINDS.values())}


class Answer(NamedTuple):
    """What the API said; `body` is empty when it said nothing."""

    status: int
    body: dict[str, Any]

    @property
    def fault(self) -> str:
        """A problem (RFC 9457) in one line."""
        errors = "; ".join(f"{error['field']}: {error['message']}" for error in self.body.get("errors", ()))
        return errors or self.body.get("detail", "no answer")


class Demo:
    """The demonstration. `key` must have every one of SCOPES; `wait` passes seconds, and tells whether to go on."""

    def __init__(self, settings: Settings, plan: Plan, key: str, wait: Callable[[float], bool]) -> None:
        self._settings = settings
        self._inbox = f"http://127.0.0.1:{settings.inbox_port}" if "inbox" in plan.programs else ""
        self._key = key
        self._wait = wait
        # A person of its own for each run: resets and verifications are limited per person and hour.
        self._to = f"ada.{time.strftime('%H%M%S')}@example.com"

    def lines(self) -> Iterator[str]:
        """Send, wait for the end of each mail, and tell; line by line, as it happens."""
        to_real_server = not (self._inbox or is_loopback(self._settings.smtp_host))
        if to_real_server and not self._settings.mail_redirect_to:
            yield (
                f"No demo: its made-up recipients would go to {self._settings.smtp_host}. "
                "Set MAIL_REDIRECT_TO to your address to get them."
            )
            return
        yield f"Demo: one mail of each kind, to {self._settings.mail_redirect_to or self._to}.\n"
        answers = {word: self._accept(word) for word in KINDS}
        deadline = time.monotonic() + PATIENCE_SECONDS
        for word, answer in answers.items():
            yield f"  {word:<19} {self._outcome(answer, deadline)}"
        api = f"http://{local(self._settings.api_host)}:{self._settings.api_port}"
        flower = f"http://{local(self._settings.flower_address)}:{self._settings.flower_port}"
        yield f"\n  Records  {api}/api/emails?to={self._to}"
        yield f"           (shown to a caller with the API key)\n  Tasks    {flower}/tasks"

    def _accept(self, word: str) -> Answer:
        sample = KINDS[word].sample().model_dump(mode="json", exclude_none=True)
        return self._call("POST", "/api/emails", sample | {"to": self._to})

    def _outcome(self, accepted: Answer, deadline: float) -> str:
        if accepted.status != 202:
            return f"refused   {accepted.fault}"
        path = accepted.body["status_url"]
        record = self._call("GET", path)
        while record.body.get("state") in WAITS and time.monotonic() < deadline and self._wait(0.1):
            record = self._call("GET", path)
        state = record.body.get("state", "unknown")
        told = record.body.get("error") or ("" if record.status == 200 else record.fault)
        if state in WAITS:
            told = told or f"not sent after {PATIENCE_SECONDS} s; the log and /health/ready say why"
        return f"{state:<9} {told or self._place(accepted.body['id'])}".rstrip()

    def _place(self, email_id: str) -> str:
        """The address of the mail's page in the inbox."""
        if not self._inbox:
            return ""
        inbox = HTTPConnection("127.0.0.1", self._settings.inbox_port, timeout=10)
        found = _ask(inbox, "GET", f"/api/v1/search?query=to:{self._to}").body
        mails = [mail["ID"] for mail in found.get("messages", ()) if email_id in mail["MessageID"]]
        return f"{self._inbox}/#{mails[0]}" if mails else ""

    def _call(self, method: str, path: str, body: object = None) -> Answer:
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        api = HTTPConnection(local(self._settings.api_host), self._settings.api_port, timeout=10)
        return _ask(api, method, path, body=json.dumps(body), headers=headers)


def _ask(connection: HTTPConnection, method: str, path: str, **more: Any) -> Answer:
    try:
        connection.request(method, path, **more)
        answer = connection.getresponse()
        return Answer(answer.status, json.loads(answer.read()))
    except (OSError, HTTPException, ValueError):
        return Answer(0, {})
    finally:
        connection.close()
