"""The HTTP API in the test's own process, and what every error of it must look like."""

import warnings
from typing import Any

import httpx

from api.problems import Problem

with warnings.catch_warnings():
    # Starlette prefers httpx2 by now; with httpx its client works all the same.
    warnings.filterwarnings("ignore", "Using `httpx`")
    from fastapi.testclient import TestClient

__all__ = ["ADMIN", "MARK", "TestClient", "bearer", "faults", "problem"]

MARK = "Xq7-planted-Zk9"
"""Stands in wrong input; no answer may show it."""


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


ADMIN = bearer("all-key")


def problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The body of an error, which must be a problem (RFC 9457) of this status and show nothing planted."""
    assert answer.status_code == status, (answer.status_code, answer.text)
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    read = Problem.model_validate(body, strict=True)
    assert set(body) <= set(Problem.model_fields)
    assert (read.status, read.type) == (status, "about:blank")
    assert read.title
    assert read.detail
    assert MARK not in answer.text
    assert MARK not in str(answer.headers)
    assert "Traceback" not in answer.text
    return body


def faults(answer: httpx.Response) -> dict[str, str]:
    """The fields that a 422 names, each with its message."""
    errors = problem(answer, 422)["errors"]
    found = {error["field"]: error["message"] for error in errors}
    assert len(found) == len(errors), "a field is named twice"
    return found
