"""The whole server as one ASGI app."""

from __future__ import annotations

from pathlib import Path

import plotly
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from loquela.serving.answers import (
    ChatAnswer,
    CompletionAnswer,
    Detokenized,
    EmbeddingAnswer,
    Health,
    ModelCard,
    ModelList,
    Said,
    Tokenized,
)
from loquela.serving.chat import chat
from loquela.serving.completions import complete
from loquela.serving.failures import ApiError, response
from loquela.serving.guard import Guard
from loquela.serving.inside import INSIDE
from loquela.serving.operations import Operation, document, route
from loquela.serving.schemas import (
    AdapterName,
    AdapterPath,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    TokenizeRequest,
)
from loquela.serving.state import Served
from loquela.serving.words import detokenize, embeddings, tokenize

__all__ = ["OPERATIONS", "build"]

_METRICS = "text/plain; version=0.0.4; charset=utf-8"


async def _health(served: Served, http: Request) -> Health:
    return Health()


async def _metrics(served: Served, http: Request) -> Response:
    return Response(served.metrics.text(), headers={"Content-Type": _METRICS})


async def _models(served: Served, http: Request) -> ModelList:
    return ModelList(data=[served.card(name) for name in (None, *served.adapters)])


async def _model(served: Served, http: Request) -> ModelCard:
    return served.card(served.adapter(http.path_params["model"]))


async def _load(served: Served, http: Request, body: AdapterPath) -> Said:
    _must_be_alone(served)
    await served.load_adapter(body.lora_name, Path(body.lora_path))
    return Said(message=f"adapter {body.lora_name} is loaded")


async def _unload(served: Served, http: Request, body: AdapterName) -> Said:
    _must_be_alone(served)
    await served.unload_adapter(body.lora_name)
    return Said(message=f"adapter {body.lora_name} is unloaded")


def _must_be_alone(served: Served) -> None:
    if served.options.workers > 1:
        raise ApiError(400, "adapters are loaded at run time by a server of one worker: start it with --adapter")


_READING = (401, 403, 500)
OPERATIONS = (
    Operation("GET", "/health", "Whether the server answers.", _health, answer=Health, errors=(403,)),
    Operation("GET", "/metrics", "Prometheus' metrics.", _metrics, media="text/plain", errors=_READING),
    Operation("GET", "/v1/models", "The model and its adapters.", _models, answer=ModelList, errors=_READING),
    Operation("GET", "/v1/models/{model}", "One of them.", _model, answer=ModelCard, errors=(*_READING, 404)),
    Operation(
        "POST", "/v1/completions", "Continue a text.", complete, CompletionRequest, CompletionAnswer, streams=True
    ),
    Operation("POST", "/v1/chat/completions", "Answer a conversation.", chat, ChatRequest, ChatAnswer, streams=True),
    Operation("POST", "/v1/embeddings", "Vectors of texts.", embeddings, EmbeddingRequest, EmbeddingAnswer),
    Operation("POST", "/tokenize", "Token ids of a text or a conversation.", tokenize, TokenizeRequest, Tokenized),
    Operation("POST", "/detokenize", "The text of token ids.", detokenize, DetokenizeRequest, Detokenized),
    Operation("POST", "/v1/load_lora_adapter", "Load an adapter (admin key).", _load, AdapterPath, Said, admin=True),
    Operation(
        "POST", "/v1/unload_lora_adapter", "Unload an adapter (admin key).", _unload, AdapterName, Said, admin=True
    ),
)
"""What can be asked, and documented so."""


def build(served: Served) -> ASGIApp:
    """Return the app; who started `served` closes it."""
    operations = [*OPERATIONS, *INSIDE]
    description = document(operations, f"Loquela: {served.name}", keyed=served.options.api_key is not None)

    async def openapi(request: Request) -> Response:
        return JSONResponse(description)

    page = served.options.page
    routes: list[BaseRoute] = [route(operation, served) for operation in operations]
    routes += [
        Route("/openapi.json", openapi),
        Route("/", _file(page / "index.html", "no-cache")),
        Route("/plotly.min.js", _file(Path(plotly.__file__).parent / "package_data" / "plotly.min.js", "max-age=3600")),
    ]
    if page.is_dir():
        routes.append(Mount("/page", StaticFiles(directory=page)))

    app = Starlette(routes=routes, exception_handlers={HTTPException: _http_error})
    app.router.redirect_slashes = False
    known = [item.path for item in routes if isinstance(item, Route) and "{" not in item.path]
    return Guard(app, served.options, served.metrics, known)


def _file(path: Path, keep: str) -> ASGIApp:
    async def send(request: Request) -> Response:
        if not path.is_file():
            raise HTTPException(404)
        return FileResponse(path, headers={"Cache-Control": keep})

    return send  # type: ignore[return-value]


async def _http_error(request: Request, error: Exception) -> Response:
    """What Starlette itself refuses: a path that is not there, a method that is not allowed."""
    assert isinstance(error, HTTPException)
    told = {404: "there is nothing at this path", 405: "this path does not take this method"}
    headers = dict(error.headers or {})
    return response(ApiError(error.status_code, told.get(error.status_code, error.detail), headers=headers))
