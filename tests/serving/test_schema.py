"""Schemathesis: whatever our own OpenAPI document allows or forbids, the server answers as the document says."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from loquela.serving.app import OPERATIONS, build
from loquela.serving.inside import INSIDE
from loquela.serving.options import Options
from loquela.serving.state import Served
from tally import Tally

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
ADMIN = "an-admin-key-of-32-characters-012"
ASKED = [(one.method, one.path) for one in (*OPERATIONS, *INSIDE)]


@pytest.fixture(scope="module")
def served(model_directory: Path) -> Iterator[Served]:
    served = Served(Options(model=model_directory, seconds=30, admin_key=ADMIN))
    yield served
    served.close()


def test_the_document_names_every_operation(served: Served) -> None:
    document = description(served)
    assert document["openapi"].startswith("3.1")
    found = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    assert set(ASKED) == found
    assert "repetition_penalty" in document["components"]["schemas"]["CompletionRequest"]["properties"]


def description(served: Served) -> dict[str, Any]:
    async def go() -> dict[str, Any]:
        transport = httpx.ASGITransport(app=build(served))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            document: dict[str, Any] = (await client.get("/openapi.json")).json()
            return document

    return asyncio.run(go())


def conforms(served: Served, method: str, path: str, examples: int, number: int = 0) -> None:
    document = description(served)
    document["paths"][path][method.lower()].pop("security", None)  # keys are test_guard's
    schema = schemathesis.openapi.from_dict(document)
    app = build(served)
    seen: list[int] = []

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        derandomize=False,
    )
    @seed(number)
    @cases(schema[path][method])
    def run(case: Any) -> None:
        headers = {"Host": "localhost", "Content-Type": "application/json"}
        if "adapter" in path:
            headers["Authorization"] = f"Bearer {ADMIN}"
        response = case.call(app=app, base_url="http://localhost", headers=headers, timeout=120)
        seen.append(response.status_code)
        case.validate_response(response, checks=CHECKS)

    run()
    assert seen


def cases(operation: Any) -> Any:
    """Bodies that the document allows, and bodies that it forbids."""
    allowed = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    if operation.method.upper() == "GET":
        return given(case=allowed)
    return given(case=allowed | operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))


@pytest.mark.parametrize(("method", "path"), ASKED)
def test_as_documented(served: Served, method: str, path: str) -> None:
    conforms(served, method, path, 15)


@pytest.mark.soak
@pytest.mark.parametrize(("method", "path"), ASKED)
def test_as_documented_a_thousand_times(served: Served, tmp_path: Path, method: str, path: str) -> None:
    """RELIABILITY 18; see `Tally` for parts."""
    tally = Tally(f"schema{path.replace('/', '-')}", tmp_path)
    while tally["examples"] < 1000:
        conforms(served, method, path, 250, tally["examples"])
        tally.add(examples=250)
