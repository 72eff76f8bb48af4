"""A batch's progress as Server-Sent Events (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

import asyncio
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable
from types import FrameType

from fastapi.concurrency import run_in_threadpool
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from api.schemas import BatchView
from mail.batches import Batch
from mail.errors import OutboxUnavailable, UnknownBatch

LOOK_EVERY = 0.5  # seconds
HEARTBEAT_EVERY = 15.0  # seconds; many proxies close what has been silent for a minute
RECONNECT_AFTER = 2_000  # milliseconds
MOST = 100  # per process; each looks at Redis twice a second


def ended_id(batch: Batch) -> str:
    """The id of the event that ends a batch's stream: a client that has it has seen everything."""
    return f"{batch.version}-end"


class EventStreams:
    """The open streams of this process."""

    def __init__(self) -> None:
        self._open = 0
        self._stopping = threading.Event()

    @property
    def full(self) -> bool:
        """Whether there is no room for another one."""
        return self._open >= MOST

    async def follow(
        self, batch_id: str, look: Callable[[str], Batch], *, last_id: str | None
    ) -> AsyncIterator[bytes]:
        """The events of one batch, until it has ended. `look` reads it, and is called in a thread; `last_id` is that
        of the last event which the client has seen."""
        self._open += 1
        try:
            yield format_sse_event(retry=RECONNECT_AFTER)
            spoke = time.monotonic()
            while not self._stopping.is_set():
                try:
                    batch = await run_in_threadpool(look, batch_id)
                except OutboxUnavailable:
                    pass  # the client keeps its stream, and has the news when Redis is back
                except UnknownBatch:
                    return
                else:
                    version = str(batch.version)
                    if version != last_id:
                        view = BatchView.model_validate(batch)
                        yield format_sse_event(event="progress", data_str=view.model_dump_json(), id=version)
                        last_id, spoke = version, time.monotonic()
                    if batch.ended:
                        yield format_sse_event(event="end", data_str="{}", id=ended_id(batch))
                        return
                if time.monotonic() - spoke >= HEARTBEAT_EVERY:
                    yield KEEPALIVE_COMMENT
                    spoke = time.monotonic()
                await asyncio.sleep(LOOK_EVERY)
        finally:
            self._open -= 1

    def end_with_process(self) -> None:
        """End the streams when the process is told to stop: uvicorn waits for open answers, and these have no end."""
        if threading.current_thread() is not threading.main_thread():
            return  # a test's; only the main thread may handle signals
        for number in (signal.SIGINT, signal.SIGTERM):
            if callable(handler := signal.getsignal(number)):
                signal.signal(number, self._before(handler))

    def _before(self, handler: Callable[[int, FrameType | None], object]) -> Callable[[int, FrameType | None], None]:
        def stop(number: int, frame: FrameType | None) -> None:
            self._stopping.set()
            handler(number, frame)

        return stop


streams = EventStreams()
