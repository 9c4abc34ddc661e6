"""Routes about the server itself."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from max_zimage.serving.errors import ApiError
from max_zimage.serving.http.state import state_of
from max_zimage.version import __version__

router = APIRouter()


@router.get("/health")
@router.get("/readyz")
async def health(request: Request) -> JSONResponse:
    """200 when requests are served, 503 while models are loaded, the worker starts again or the server ends."""
    state = state_of(request)
    writes = state.enhancer is None or state.enhancer.is_ready
    ready = state.dispatcher.is_ready and writes
    waits = "restarting" if state.was_ready and writes else "loading"
    status = "ready" if ready else "ending" if state.dispatcher.is_closing else waits
    return JSONResponse({"status": status}, status_code=200 if ready else 503)


@router.get("/livez")
async def alive() -> dict[str, str]:
    """200 as long as the server answers at all, whatever its worker does."""
    return {"status": "alive"}


@router.get("/version")
async def version() -> dict[str, str]:
    """The server's version."""
    return {"version": __version__}


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Figures for Prometheus."""
    return Response(state_of(request).metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    """The served model, and what a request may ask for."""
    return {"object": "list", "data": [_model(request), *_text_models(request)]}


@router.get("/v1/models/{name:path}")
async def model(name: str, request: Request) -> dict[str, Any]:
    """The served model by its name."""
    found = {each["id"]: each for each in (_model(request), *_text_models(request))}
    if name not in found:
        known = " and ".join(map(repr, found))
        raise ApiError(404, "model_not_found", f"model: this server has {known}, not {name!r}", param="model")
    return found[name]


def _text_models(request: Request) -> list[dict[str, Any]]:
    """The model that answers chats, where there is one."""
    desk = state_of(request).enhancer
    if desk is None or desk.chat_model is None:
        return []
    return [{"id": desk.chat_model.name, "object": "model", "created": 0, "owned_by": "max_zimage"}]


def _model(request: Request) -> dict[str, Any]:
    state = state_of(request)
    served, defaults = state.served, state.served.tokenizer.defaults
    limits = served.limits
    return {
        "id": served.name,
        "object": "model",
        "created": 0,
        "owned_by": "max_zimage",
        "defaults": {
            "size": f"{defaults.width}x{defaults.height}",
            "steps": defaults.num_inference_steps,
            "guidance_scale": defaults.guidance_scale,
        },
        "loras": list(served.tokenizer.limits.lora_files.names()),
        "limits": {"pixels": limits.pixels, "steps": limits.steps, "n": limits.images},
    }
