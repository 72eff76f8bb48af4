"""Server-Sent Events (https://html.spec.whatwg.org/multipage/server-sent-events.html) of what changes."""

import asyncio
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable
from types import FrameType
from typing import NamedTuple

from fastapi.concurrency import run_in_threadpool
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from mail.errors import OutboxUnavailable, UnknownEmail

LOOK_EVERY = 0.5  # seconds
HEARTBEAT_EVERY = 15.0  # seconds; many proxies close what has been silent for a minute
RECONNECT_AFTER = 2_000  # milliseconds
MOST = 100  # per process; each looks at Redis twice a second


class Moment(NamedTuple):
    """How something stands: `version` changes whenever `data` does. After the one that has `ended` nothing comes."""

    version: str
    event: str
    data: str
    ended: bool = False

    @property
    def end_id(self) -> str:
        """The id of the event that ends a stream: a client that has it has seen everything."""
        return f"{self.version}-end"


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
        self,
        look: Callable[[], Moment],
        *,
        last_id: str | None = None,
        longest: float = float("inf"),
    ) -> AsyncIterator[bytes]:
        """The events of one thing, until it has ended or is gone, for `longest` seconds. `look` sees how it stands,
        and is called in a thread; `last_id` is that of the last event which the client has
        seen."""
        self._open += 1
        try:
            yield format_sse_event(retry=RECONNECT_AFTER)
            began = spoke = time.monotonic()
            while not self._stopping.is_set() and time.monotonic() - began < longest:
                try:
                    moment = await run_in_threadpool(look)
                except OutboxUnavailable:
                    pass  # the client keeps its stream, and has the news when Redis is back
                except UnknownEmail:
                    return
                else:
                    if moment.version != last_id:
                        yield format_sse_event(event=moment.event, data_str=moment.data, id=moment.version)
                        last_id, spoke = moment.version, time.monotonic()
                    if moment.ended:
                        yield format_sse_event(event="end", data_str="{}", id=moment.end_id)
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
