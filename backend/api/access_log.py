"""Keeps what a caller searched for out of uvicorn's access log: `?to=` is a person's address."""

import logging


class WithoutQuery(logging.Filter):
    """Cuts the query off the path in uvicorn's access records: (client, method, path, HTTP version, status)."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple) and len(record.args) == 5:
            client, method, path, version, status = record.args
            record.args = (client, method, str(path).partition("?")[0], version, status)
        return True


def install() -> None:
    """Filter the access log of this process."""
    logging.getLogger("uvicorn.access").addFilter(WithoutQuery())
