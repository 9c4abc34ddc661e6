"""The web page and the page of the API: files alone, and the two routes that were made for them, which want the key."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from max_zimage.serving.errors import ApiError
from max_zimage.serving.http import routes_capabilities, routes_parameters
from max_zimage.serving.http.static_files import PAGES, PREFIX, answered

router = APIRouter()
router.include_router(routes_capabilities.router)
router.include_router(routes_parameters.router)


async def file(request: Request) -> Response:
    """A file of the page."""
    found = answered(request, request.url.path)
    if found is None:
        raise ApiError(404, "not_found", f"{request.method} {request.url.path}: there is no such file")
    return found


for _path in (*PAGES, PREFIX + "{name:path}"):
    router.add_api_route(_path, file, methods=["GET", "HEAD"], include_in_schema=False)
