"""How this service logs: one line per event, structlog's and the standard library's alike, through one formatter.

    logger = structlog.get_logger(__name__)
    logger.warning("wake_up.not_published", email_id=email_id, error=type(error).__name__)

An event is a dotted name with facts beside it; docs/logs.md lists them. Nobody has to think of secrets: every text
passes `redact` just before it is written, tracebacks too.

Programs of ours call `set_up`. In a program that merely imports us, such as an LMS, events go to its own `logging` as
`name key=value`, redacted too; where it has configured structlog itself, that holds.
"""

import json
import logging
import re
import sys
import threading
import traceback
import uuid
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO, cast

import structlog
from structlog.dev import ConsoleRenderer, plain_traceback
from structlog.typing import EventDict, Processor, WrappedLogger

from mail.redaction import redact

if TYPE_CHECKING:
    from settings import Settings

__all__ = ["current_request_id", "formatter", "redact", "request_id", "set_up"]

logger = structlog.get_logger(__name__)

LONGEST = 2_000
LONGEST_TRACEBACK = 12_000  # below the 16 KB at which Docker's log drivers split a line

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_OURS = frozenset({"timestamp", "level", "logger"})
_LINES = frozenset({"exception", "stack"})
# Celery says of each task that it came and how it ended; our own events say it of each email, and more.
_CHATTY = ("celery.worker.strategy", "celery.app.trace")
# Set up by uvicorn to write by themselves, before it imports the application.
_SELF_WILLED = ("uvicorn", "uvicorn.error", "uvicorn.access")


class Event(dict[str, Any]):
    """What structlog hands to `logging`. As a text, for handlers that are not ours: one line, and any traceback."""

    def __str__(self) -> str:
        facts: EventDict = {name: value for name, value in self.items() if name not in _OURS}
        for process in (_with_traceback, _safe, _printable):
            facts = process(None, "", facts)
        return cast("str", _TEXT(None, "", facts))


class _Handler(logging.StreamHandler[TextIO]):
    def handleError(self, record: logging.LogRecord) -> None:
        """The standard library's prints the raw arguments of a call whose format does not fit them."""
        if record.name != __name__:
            logger.error("log.broken", by=record.name, error=type(sys.exc_info()[1]).__name__)


def set_up(program: str, settings: "Settings") -> None:
    """Write everything that this process logs to standard error.

    Args:
        program: stands in every line: `api`, `flower`, or the name of a worker node.
        settings: for LOG_LEVEL and LOG_FORMAT.
    """
    handler = _Handler()
    handler.setFormatter(formatter(program, as_json=settings.logs_as_json, colors=_wants_colors(handler.stream)))
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(settings.log_level)
    for name in _SELF_WILLED:
        theirs = logging.getLogger(name)
        theirs.handlers.clear()
        theirs.propagate = True
        theirs.setLevel(logging.NOTSET)
    # One of our own for every request has more in it (api/request_log.py).
    logging.getLogger("uvicorn.access").propagate = False
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.NOTSET if settings.log_level == "DEBUG" else logging.WARNING)
    logging.captureWarnings(True)
    # Where nobody else has: what a process or a thread dies of is an event like any other.
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _tell_death
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _tell_death_of_thread


def formatter(program: str, *, as_json: bool, colors: bool = False) -> logging.Formatter:
    """Makes a line of any record."""
    render: list[Processor] = [_json] if as_json else [_printable, _console(colors=colors)]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[_task_of, *_SHARED],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            _with_traceback,
            _safe,
            _signed(program),
            *render,
        ],
    )


def request_id(given: str | None = None) -> str:
    """The id that follows what one request began: `given`, when it is fit to be stored and logged, else a new one."""
    return given if given and _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def current_request_id() -> str | None:
    """The id of the request, or of the email, that is being worked on."""
    return cast("str | None", structlog.contextvars.get_contextvars().get("request_id"))


# The chain. A processor takes and gives the facts of one event.


def _task_of(_: WrappedLogger, __: str, facts: EventDict) -> EventDict:
    """The email that a line of Celery is about: its id is the task's."""
    data = getattr(facts["_record"], "data", None)
    if isinstance(data, Mapping) and "id" in data:
        facts["email_id"] = data["id"]
    facts["event"] = facts["event"].strip()
    return facts


def _with_traceback(_: WrappedLogger, __: str, facts: EventDict) -> EventDict:
    """Turns an exception into text, without the values of variables."""
    given = facts.pop("exc_info", None)
    if isinstance(given, BaseException):
        given = (type(given), given, given.__traceback__)
    elif given and not isinstance(given, tuple):
        given = sys.exc_info()
    if given and given[1] is not None:
        facts["exception"] = "".join(traceback.format_exception(*given)).rstrip()
    if stack := facts.pop("stack_info", None):
        facts["stack"] = stack
    return facts


def _safe(_: WrappedLogger, __: str, facts: EventDict) -> EventDict:
    """The facts as they may be shown: redacted, of bounded length, none without a value."""
    return {
        name: value if name in _OURS else _shown(value, traceback=name in _LINES)
        for name, value in facts.items()
        if value is not None
    }


def _shown(value: object, *, traceback: bool = False) -> Any:
    if isinstance(value, str):
        if len(value) <= LONGEST:
            return redact(value)
        # Cut twice: so that a very long text costs little, and so that no cut leaves half of a secret.
        if traceback:
            text = redact(value[-10 * LONGEST_TRACEBACK :])  # what went wrong is said at its end
            return text if len(text) <= LONGEST_TRACEBACK else f"... {text[-LONGEST_TRACEBACK:]}"
        text = redact(value[: 10 * LONGEST])
        return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(value)} characters)"
    if isinstance(value, int | float):
        return value
    if isinstance(value, Mapping):
        return {_shown(str(key)): _shown(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_shown(inner) for inner in value]
    return _shown(str(value))


def _signed(program: str) -> Processor:
    """Says which program it was, and puts what every line has where the eye looks for it."""

    def sign(_: WrappedLogger, __: str, facts: EventDict) -> EventDict:
        first = {name: facts.pop(name, "") for name in ("timestamp", "level", "event")}
        return {**first, **facts, "logger": facts.pop("logger", None), "program": program}

    return sign


def _json(_: WrappedLogger, __: str, facts: EventDict) -> str:
    # ASCII only: some readers take U+2028 or U+0085 for the end of a line.
    return json.dumps(facts)


def _printable(_: WrappedLogger, __: str, facts: EventDict) -> EventDict:
    """Escapes what would begin a line, or command a terminal. Only a traceback has lines, and they are indented."""
    for name, value in facts.items():
        if name in _LINES:
            facts[name] = "\n".join(f"    {_escaped(line)}" for line in value.splitlines())
        elif isinstance(value, str):
            facts[name] = _escaped(value)
    return facts


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def _console(*, colors: bool) -> Processor:
    # The exception is text already: rich's form of it would show the values of variables.
    return ConsoleRenderer(colors=colors, pad_event_to=0, sort_keys=False, exception_formatter=plain_traceback)


def _wants_colors(stream: TextIO) -> bool:
    from settings import no_color

    return stream.isatty() and not no_color()


def _tell_death(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    else:
        logger.critical("process.died", exc_info=(kind, error, trace))


def _tell_death_of_thread(died: threading.ExceptHookArgs) -> None:
    if died.exc_type is not SystemExit and died.exc_value is not None:
        name = died.thread.name if died.thread else None
        logger.critical("thread.died", thread=name, exc_info=died.exc_value)


_SHARED: list[Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]
_TEXT = _console(colors=False)

if not structlog.is_configured():
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_SHARED,
            lambda _, __, facts: Event(facts),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        # Not structlog.stdlib.LoggerFactory: it replaces the class of every logger, those of a host too.
        logger_factory=logging.getLogger,
        # Not structlog.stdlib.BoundLogger: its `exception` has the host print the traceback once more, as it is.
        wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET),
        cache_logger_on_first_use=True,
    )
