"""The OpenAPI description: whole, with an example per kind and every error."""

from collections.abc import Iterator
from typing import Any

import pytest

from api.problems import FieldProblem, Problem
from mail.kinds import KINDS, parse
from support.api import TestClient

# By method and path: the errors that a client must be ready for.
COMMON = {"401", "403", "429", "500", "503"}
ERRORS = {
    "POST /api/emails": {*COMMON, "409", "413", "422", "502"},
    "GET /api/emails": {*COMMON, "404", "422"},
    "GET /api/emails/{email_id}": {*COMMON, "404"},
    "POST /api/emails/{email_id}/cancel": {*COMMON, "404", "409"},
    "POST /api/emails/{email_id}/retry": {*COMMON, "404", "409"},
    "POST /api/batches": {*COMMON, "409", "413", "415", "422"},
    "GET /api/batches": {*COMMON, "422"},
    "GET /api/batches/{batch_id}": {*COMMON, "404"},
    "GET /api/batches/{batch_id}/recipients": {*COMMON, "404", "422"},
    "GET /api/batches/{batch_id}/events": {*COMMON, "404"},
    **{
        f"POST /api/batches/{{batch_id}}/{verb}": {*COMMON, "404", "409"}
        for verb in ("pause", "resume", "cancel", "retry-failed", "release-held", "drop-held")
    },
    "GET /api/tasks/{task_id}": {*COMMON, "404"},
    "GET /metrics": {"401", "403", "429"},
    "GET /health/live": set(),
    "GET /health/ready": {"503"},
}


@pytest.fixture
def document(client: TestClient) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/openapi.json").json()
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        if "discriminator" in node:
            yield from node["discriminator"].get("mapping", {}).values()
        for inner in node.values():
            yield from references(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from references(inner)


def test_it_is_whole(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    schemas = document["components"]["schemas"]
    used = set(references(document))
    assert used
    assert not [one for one in used if one.removeprefix("#/components/schemas/") not in schemas]
    assert "HTTPValidationError" not in schemas
    ids = [operation["operationId"] for _, operation in operations(document)]
    assert len(ids) == len(set(ids))
    for name, operation in operations(document):
        assert operation["summary"], name
        assert operation["tags"], name
        in_path = {one["name"] for one in operation.get("parameters", []) if one["in"] == "path"}
        assert in_path == {part[1:-1] for part in name.split("/") if part.startswith("{")}


def test_errors(document: dict[str, Any]) -> None:
    described = {
        name: {status for status in operation["responses"] if status[0] in "45"}
        for name, operation in operations(document)
    }
    assert described == ERRORS
    for name, operation in operations(document):
        for status in ERRORS[name]:
            (answer,) = operation["responses"][status]["content"].items()
            assert answer[0] == "application/problem+json"
            assert answer[1]["schema"] == {"$ref": "#/components/schemas/Problem"}
            assert answer[1]["example"]["status"] == int(status)
            Problem.model_validate(answer[1]["example"])
            assert operation["responses"][status]["description"]
    schemas = document["components"]["schemas"]
    assert set(schemas["Problem"]["properties"]) == set(Problem.model_fields)
    assert set(schemas["FieldProblem"]["properties"]) == set(FieldProblem.model_fields)


def test_what_a_request_must_have(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for word, kind in KINDS.items():
        required = {name for name, field in kind.model_fields.items() if field.is_required()}
        assert set(schemas[f"{kind.__name__}Request"]["required"]) == {"kind", *required}, word


def test_each_answer_of_a_send_has_its_own_shape(document: dict[str, Any]) -> None:
    answers = document["paths"]["/api/emails"]["post"]["responses"]
    shapes = {status: answers[status]["content"]["application/json"]["schema"]["$ref"] for status in ("200", "202")}
    assert shapes == {"200": "#/components/schemas/EmailDelivered", "202": "#/components/schemas/EmailAccepted"}


def test_an_example_per_kind(document: dict[str, Any]) -> None:
    content = document["paths"]["/api/emails"]["post"]["requestBody"]["content"]
    assert list(content) == ["application/json"]
    examples = content["application/json"]["examples"]
    assert list(examples) == list(KINDS)
    for word, example in examples.items():
        assert example["value"]["kind"] == word
        assert example["summary"]
        assert parse(example["value"]) == KINDS[word].sample()
    schema = content["application/json"]["schema"]
    assert schema["discriminator"]["propertyName"] == "kind"
    assert set(schema["discriminator"]["mapping"]) == set(KINDS)


def test_the_examples_work(client: TestClient, document: dict[str, Any]) -> None:
    post = document["paths"]["/api/emails"]["post"]
    for example in post["requestBody"]["content"]["application/json"]["examples"].values():
        assert client.post("/api/emails", json=example["value"]).status_code == 202


def test_both_forms_of_a_batch(client: TestClient, document: dict[str, Any]) -> None:
    content = document["paths"]["/api/batches"]["post"]["requestBody"]["content"]
    assert list(content) == ["application/json", "application/x-ndjson"]
    assert content["application/json"]["schema"] == {"$ref": "#/components/schemas/BatchRequest"}
    fields = document["components"]["schemas"]["BatchRequest"]["properties"]
    shared = {
        name for kind in KINDS.values() if not kind.secret_fields() for name in kind.model_fields if name != "to"
    }
    assert set(fields) >= {*shared, "recipients", "course_id", "send_at", "expires_at", "on_unknown"}
    assert "reset_url" not in fields
    for example in content["application/json"]["examples"].values():
        assert set(example["value"]) <= set(fields)
        assert client.post("/api/batches", json=example["value"]).status_code == 202
    lines = content["application/x-ndjson"]["example"]
    headers = {"Content-Type": "application/x-ndjson"}
    assert client.post("/api/batches", content=lines, headers=headers).json()["total"] == 2


def test_security(document: dict[str, Any]) -> None:
    schemes = document["components"]["securitySchemes"]
    kinds = {name: (scheme["type"], scheme.get("scheme"), scheme.get("name")) for name, scheme in schemes.items()}
    assert set(kinds.values()) == {("http", "bearer", None), ("apiKey", None, "X-API-Key")}
    for name, operation in operations(document):
        # Each alone is enough: one entry per scheme, not one entry with both.
        wanted = [{scheme: []} for scheme in schemes] if name.split(" ")[1].startswith(("/api", "/metrics")) else None
        assert operation.get("security") == wanted


def test_pages_for_people(client: TestClient) -> None:
    assert "swagger" in client.get("/docs").text.lower()
