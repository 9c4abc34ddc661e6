"""Images that requests name by an address: refused, or fetched by MAX's client.

That client connects to public addresses only, checks them again at every redirect, and stops at a size.

Reference: MAX serve/router/_image_resolution.py.
"""

from __future__ import annotations

import asyncio
import base64
import re

import httpx
from max.pipelines.context.exceptions import InputError
from max.serve.config import Settings
from max.serve.router._image_resolution import make_media_ref, resolve_image_from_url

from max_zimage.serving.errors import bad_request
from max_zimage.serving.http.state import ServerState

_SECONDS = 30.0
_REMOTE = re.compile(r"https?://", re.IGNORECASE)


def is_remote(url: object) -> bool:
    """Whether something is an address on the net."""
    return isinstance(url, str) and _REMOTE.match(url) is not None


async def fetched(state: ServerState, field: str, url: str) -> str:
    """Fetch an image.

    Args:
        state: The server, whose settings say whether it may.
        field: The request's field that named it.
        url: Its address.

    Returns:
        The file that is there as a data URL.

    Raises:
        ApiError: 400 if this server fetches nothing, the address is not public, or there is no file.
    """
    if not state.settings.allow_remote_images:
        raise bad_request(f"{field}: this server fetches nothing; send a data URL or a form with a file", field)
    limits = state.served.limits
    settings = Settings(
        MAX_SERVE_MEDIA_URL_SSRF_PROTECTION_ENABLED=True,
        MAX_SERVE_MAX_MEDIA_BYTES=max(limits.body_bytes, 4 * limits.input_pixels),  # of the file, and of its pixels
    )
    try:
        async with asyncio.timeout(_SECONDS):
            content = await resolve_image_from_url(make_media_ref(url), settings, media_kind="image")
    except TimeoutError as error:
        raise bad_request(f"{field}: it cannot be fetched within {_SECONDS:g} s; send a data URL", field) from error
    except (InputError, ValueError, httpx.HTTPError) as error:
        raise bad_request(f"{field}: it cannot be fetched: {error}", field) from error
    # Not looked into by MAX, which takes other files than `decode_image` does. What it is its bytes say.
    return f"data:application/octet-stream;base64,{base64.b64encode(content).decode()}"
