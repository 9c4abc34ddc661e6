"""The routes of a server put together."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from max_zimage.serving.errors import ApiError
from max_zimage.serving.http import (
    routes_a1111,
    routes_a1111_lists,
    routes_chat,
    routes_edits,
    routes_features,
    routes_images,
    routes_llm_dit,
    routes_page,
    routes_responses,
    routes_service,
)
from max_zimage.serving.http.gate import gated
from max_zimage.serving.http.middleware import internal_error
from max_zimage.serving.http.state import ServerState
from max_zimage.version import __version__

_ROUTES = (
    routes_images,
    routes_edits,
    routes_features,
    routes_chat,
    routes_responses,
    routes_service,
    routes_llm_dit,
    routes_a1111,
    routes_a1111_lists,
    routes_page,
)
_CODES = {404: "not_found", 405: "method_not_allowed"}


def make_app(state: ServerState) -> ASGIApp:
    """Put together the routes, the error answers and the gate before them."""
    # FastAPI's own pages of the API take scripts from elsewhere; /docs is one of the page's files.
    app = FastAPI(
        title="max_zimage",
        version=__version__,
        description="Pictures from prompts with Z-Image.",
        docs_url=None,
        redoc_url=None,
    )
    app.state.server = state
    for module in _ROUTES:
        app.include_router(module.router)

    def answer(request: Request, error: ApiError) -> Response:
        state.metrics.rejections.labels(error.code).inc()
        return JSONResponse(error.body(request.url.path), status_code=error.status, headers=error.headers)

    @app.exception_handler(ApiError)
    async def on_refusal(request: Request, error: ApiError) -> Response:
        return answer(request, error)

    @app.exception_handler(HTTPException)
    async def on_no_route(request: Request, error: HTTPException) -> Response:
        code = _CODES.get(error.status_code, "invalid_value")
        message = f"{request.method} {request.url.path}: {error.detail}"
        return answer(request, ApiError(error.status_code, code, message, headers=error.headers))

    @app.exception_handler(ClientDisconnect)
    async def on_hang_up(request: Request, error: ClientDisconnect) -> Response:
        return answer(request, ApiError(499, "cancelled", "the client hung up before its request was read"))

    @app.exception_handler(RequestValidationError)
    async def on_bad_path(request: Request, error: RequestValidationError) -> Response:
        return answer(request, ApiError(400, "invalid_value", str(error)))

    @app.exception_handler(Exception)
    async def on_fault(request: Request, error: Exception) -> Response:
        return answer(request, internal_error(request.state.request_id))  # the gate logs it

    return gated(app, state)
