"""One whole service as real processes: Valkey with AOF, API, worker nodes, and a sink that takes their mail.

Worker nodes that die are started again at once, as supervisor does; everything ends with the rig.
"""

import sys
import threading
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "backend"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

import httpx

from support.batches import faults, recipients, start_batch, wait_for_end
from support.processes import Api, Process, Valkey, Worker, free_port, wait_until
from support.service import service_env

HERE = Path(__file__).resolve().parent


class Event(NamedTuple):
    """One line of the sink's record; `at` is in seconds since 1970."""

    at: float
    what: str
    to: str
    email_id: str


class Account(NamedTuple):
    """Counts by state, each recipient, the messages that arrived for each, and whatever is not exact."""

    counts: dict[str, int]
    recipients: list[dict[str, Any]]
    copies: Counter[str]
    wrong: list[str]

    def held(self) -> str:
        """How many are held, and how many of them got the mail all the same."""
        held = [one["email_id"] for one in self.recipients if one["state"] == "held"]
        return f"{len(held):,} held, of whom {sum(self.copies[one] for one in held):,} had been sent to"

    def others(self, *states: str) -> list[str]:
        """Who is in none of these states."""
        return [f"{one['to']} is {one['state']}" for one in self.recipients if one["state"] not in states]


class SinkProcess(Process):
    """tools/batches/sink.py."""

    def __init__(self, directory: Path, *, host: str = "127.0.0.1", **options: str) -> None:
        self.host = host
        self.port = free_port()
        self.record = directory / f"sink-{self.port}.tsv"
        command = [sys.executable, str(HERE / "sink.py"), "--host", host, "--port", str(self.port)]
        command += ["--record", str(self.record)]
        for name, value in options.items():
            command += [f"--{name}", value]
        super().__init__(command, directory / f"sink-{self.port}.log")
        self._events: list[Event] = []
        self._read = 0

    def events(self) -> list[Event]:
        """All of the record so far."""
        if self.record.exists():
            with self.record.open() as file:
                file.seek(self._read)
                text = file.read()
            whole = text[: text.rfind("\n") + 1]
            self._read += len(whole)  # the record is ASCII
            for line in whole.splitlines():
                at, what, to, email_id = line.split("\t")
                self._events.append(Event(float(at), what, to, email_id))
        return self._events

    def taken(self, prefix: str = "") -> list[Event]:
        """The messages that it has taken, whose email ids begin like this."""
        return [event for event in self.events() if event.what == "taken" and event.email_id.startswith(prefix)]

    def copies(self, prefix: str = "") -> Counter[str]:
        return Counter(event.email_id for event in self.taken(prefix))


class Rig:
    """Use it in a `with`. `env` is added to the settings of every process."""

    def __init__(
        self,
        directory: Path,
        *,
        sink: Mapping[str, str] | None = None,
        valkey: Valkey | None = None,
        host: str = "127.0.0.1",
        **env: str,
    ) -> None:
        self.directory = directory
        self.valkey = valkey or Valkey(directory)
        self.sink = SinkProcess(directory, host=host, **(sink or {}))
        self.env = service_env(
            self.valkey.url, self.sink, **{"BATCH_MAX_RECIPIENTS": "100000", "RECIPIENT_HOURLY_LIMIT": "1000", **env}
        )
        self.api = Api(self.env, directory)
        self.nodes: list[Worker] = []
        self.restarts = 0
        self._stack = ExitStack()
        self._ending = threading.Event()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self.valkey)
            stack.enter_context(self.sink)
            stack.enter_context(self.api)
            self.http = stack.enter_context(self.api.client())
            stack.callback(self._end_nodes)
            self._stack = stack.pop_all()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def node(self, lanes: str, *, command: list[str] | None = None, **env: str) -> Worker:
        """Start a worker node and keep it alive. `command` goes before its own."""
        worker = Worker({**self.env, **env}, self.directory, lanes=lanes)
        worker.command = [*(command or []), *worker.command]
        worker.start()
        self.nodes.append(worker)
        return worker

    def nodes_of_production(self, *, bulk: int = 1) -> list[Worker]:
        """What start_celery.sh starts, with that many bulk nodes; returns these."""
        self.node("critical,standard")
        return [self.node("bulk", command=["nice", "-n", "15"]) for _ in range(bulk)]

    def _keep(self) -> None:
        while not self._ending.wait(0.2):
            for node in list(self.nodes):
                if not node.running:
                    self.restarts += 1
                    node.start(ready=False)

    def _end_nodes(self) -> None:
        self._ending.set()
        self._keeper.join()
        for node in self.nodes:
            # A node may be where its Redis or its server is gone; nobody waits for that.
            if node.running:
                node.thaw()
                node.kill()

    # Batches.

    def start(self, people: list[dict[str, Any]], **more: object) -> str:
        return start_batch(self.http, people, **more)

    def wait_for_taken(self, prefix: str, count: int, *, timeout: float = 600) -> None:
        """Wait until the sink has taken that many mails of a batch."""
        wait_until(lambda: len(self.sink.taken(prefix)) >= count, timeout=timeout, what=f"{count} mails")

    def wait_for_end(self, batch_id: str, *, timeout: float) -> dict[str, Any]:
        return wait_for_end(self.http, batch_id, timeout=timeout)

    def account(self, batch_id: str) -> Account:
        """What the service says now against what the sink has recorded."""
        while True:
            found = self._found(batch_id)
            people = recipients(self.http, batch_id, limit="1000")
            # A worker that was cut off may report what it did after the batch has ended.
            if found["version"] == self._found(batch_id)["version"]:
                copies = self.sink.copies(batch_id)
                return Account(found["counts"], people, copies, faults(found, people, copies))

    def _found(self, batch_id: str) -> dict[str, Any]:
        answer = self.http.get(f"/api/batches/{batch_id}")
        answer.raise_for_status()
        return dict(answer.json())

    def post(self, batch_id: str, action: str) -> httpx.Response:
        answer = self.http.post(f"/api/batches/{batch_id}/{action}")
        if answer.status_code != 200:
            raise RuntimeError(f"{action}: {answer.text}")
        return answer
