"""A process of a fleet that holds the text encoder alone."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from max_zimage.errors import RequestError
from max_zimage.host.processors import keep_to
from max_zimage.pipeline.encoder import CheckedEncoder, ZImageTextEncoder
from max_zimage.pipeline.encoding import request_of_texts
from max_zimage.request.feature_settings import SETTINGS
from max_zimage.serving.errors import ApiError
from max_zimage.serving.http.api_names import IMAGES, refused
from max_zimage.serving.http.requests import check_texts
from max_zimage.serving.http.routes_features import FEATURES
from max_zimage.serving.http.routes_images import parsed
from max_zimage.serving.settings import ServerLimits
from max_zimage.text.tokenizer import TokenizerError


class EncoderReplica:
    """Encodes one request at a time.

    Args:
        opening: Checks and returns the encoder and a server's limits; called here, where the device is.
        processors: That it keeps to; 0 for no limit.
    """

    def __init__(self, opening: Callable[[], tuple[CheckedEncoder, ServerLimits]], processors: int) -> None:
        keep_to(processors)
        checked, self._limits = opening()
        self._encoder = ZImageTextEncoder(checked)
        self._turns = ThreadPoolExecutor(1)  # who hangs up ends no thread: the next prompt waits for it all the same

    async def encode(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Encode texts.

        Args:
            asked: Fields of `/v1/prompt-features`.

        Returns:
            `features`, base64 of a file of them; or `error`, the arguments of an `ApiError`.
        """
        try:
            return {"features": await asyncio.get_running_loop().run_in_executor(self._turns, self._encoded, asked)}
        except ApiError as error:
            told = {"status": error.status, "code": error.code, "message": str(error), "param": error.param}
            return {"error": told}

    def _encoded(self, asked: dict[str, Any]) -> str:
        body = parsed(FEATURES, json.dumps(asked).encode())
        given = {name: getattr(body, name) for name in (*SETTINGS, "template")}
        settings = {name: value for name, value in given.items() if value is not None}
        try:
            texts = body.prompt, body.negative_prompt
            check_texts(self._limits, request_of_texts(self._encoder.sources, *texts, **settings), IMAGES)
            features = self._encoder.encode(*texts, **settings)
        except (RequestError, TokenizerError) as error:
            raise refused(error, IMAGES) from error
        return base64.b64encode(features.to_bytes()).decode()
