"""Prompts that are encoded apart: the gateway has it done, and the replica draws from the features.

Encoders are processes that hold the text encoder alone, so that there are as many of them as prompts need, whatever the
number of those that draw. Where none answers, the replica encodes the prompt as it does without them.

What is configured for requests that say nothing is known to encoders as it is to replicas, as far as it says how texts
are read. What decides whether a prompt is encoded here at all has to be known here.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.types import Scope

from max_zimage.request.feature_settings import SETTINGS
from max_zimage.request.fields import ROWS
from max_zimage.serving.errors import ApiError

_log = logging.getLogger("max_zimage.serving")
_ROUTES = ("/v1/images/generations", "/v1/images/edits")
_SETTINGS = tuple(row.images.name for name in (*SETTINGS, "template") if (row := ROWS[name]).images is not None)
_TEXTS = ("prompt", "negative_prompt", *_SETTINGS)
_OTHERS = ("features", "enhance", "seed_variance", "loras")
"""What is left to the replicas: the prompt is not the one to encode, is not all of it, or the encoder is another."""
_GUIDANCE = ("guidance_scale", "nag_scale")
CONFIGURED = ("negative_prompt", *_OTHERS, *_GUIDANCE)
"""What of a configuration decides whether and what is encoded, besides that which encoders read themselves."""
_SECONDS = 60.0


class Encoding:
    """Asks encoders.

    Args:
        encoders: Their handle.
        configured: For requests that say nothing: field of `CONFIGURED` -> value.
    """

    def __init__(self, encoders: DeploymentHandle[Any], configured: Mapping[str, Any]) -> None:
        self._encoders, self._configured = encoders, configured

    def wants(self, scope: Scope) -> bool:
        """Whether the body of a request may hold a prompt that is encoded here."""
        kinds = [value for name, value in scope["headers"] if name.lower() == b"content-type"]
        is_json = len(kinds) == 1 and kinds[0].lower().startswith(b"application/json")
        return scope["method"] == "POST" and scope["path"] in _ROUTES and is_json

    async def encoded(self, given: Mapping[str, Any], body: bytes) -> bytes:
        """The body with features in place of what they are made of; as it is where it is not for encoders.

        Args:
            given: The body, read.
            body: As it came.

        Raises:
            ApiError: What the replica would say of the texts.
        """
        if not isinstance(given.get("prompt"), str):
            return body
        said = {name: value for name, value in given.items() if value is not None}
        whole = {**self._configured, **said}
        if any(whole.get(name) for name in _OTHERS) or self._configured.get("loras"):
            return body
        if whole.get("negative_prompt") and not _guides(whole):
            return body  # the replica says whether it would do anything
        negative = whole.get("negative_prompt", "")
        asked = {name: said[name] for name in _TEXTS if name in said} | {"negative_prompt": negative}
        try:
            async with asyncio.timeout(_SECONDS):
                answer: dict[str, Any] = await self._encoders.encode.remote(asked)
        except (RayError, BackPressureError, DeploymentUnavailableError, TimeoutError) as error:
            # A failure of its own among them: whether the prompt can be encoded is then the replica's to say.
            _log.warning("no encoder answers (%s: %s); the replica encodes the prompt", type(error).__name__, error)
            return body
        if "error" in answer:
            raise ApiError(**answer["error"])
        kept = {name: value for name, value in given.items() if name not in _TEXTS}
        return json.dumps(kept | answer).encode()


def _guides(given: Mapping[str, Any]) -> bool:
    """Whether it is said, whatever the checkpoint, that a negative prompt counts."""
    return any(isinstance(given.get(name), (int, float)) and given[name] > 0 for name in _GUIDANCE)
