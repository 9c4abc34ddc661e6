"""An enhancer behind an address: any API of chat completions as OpenAI's.

The owner of the program names the address, never a request. An answer has a time, a number of bytes and a number of
tokens; whatever else goes wrong is said, and the prompt is drawn as it was given.

Reference: OpenAI's API, create chat completion and list models.
"""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
from typing_extensions import override

from max_zimage.enhancer.base import Enhancer, EnhancerFailed
from max_zimage.enhancer.settings import EnhancerSettings

MAX_BYTES = 256 * 1024
"""Of an answer; one of the longest prompt has some 30 KiB."""
_ROUTE = "/chat/completions"
_WORKERS = 8
_SHOWN = 200


class AddressEnhancer(Enhancer):
    """Asks an API.

    Args:
        settings: Whose model is its address; they were checked.
    """

    workers = _WORKERS

    def __init__(self, settings: EnhancerSettings) -> None:
        self._settings, self._key, self._system = settings, settings.key(), settings.system()
        self.seconds = settings.seconds
        self._base = str(settings.model).rstrip("/").removesuffix(_ROUTE)
        # A picture says which model wrote its prompt, not where that was asked.
        self.name = settings.api_model or "an API"

    @override
    def write(self, prompt: str, seed: int) -> str:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(self._in_time(prompt, seed))
        # Whoever calls is inside a loop, as a notebook is, and a thread has one of its own.
        with ThreadPoolExecutor(1) as apart:
            return apart.submit(asyncio.run, self._in_time(prompt, seed)).result()

    async def _in_time(self, prompt: str, seed: int) -> str:
        seconds = self.seconds
        try:
            async with asyncio.timeout(seconds):
                return await self._asked(prompt, seed)
        except TimeoutError as error:
            raise EnhancerFailed(f"did not answer within {seconds:g} s") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise EnhancerFailed(f"cannot be reached: {_short(error) or type(error).__name__}") from error

    async def _asked(self, prompt: str, seed: int) -> str:
        headers = {} if self._key is None else {"Authorization": f"Bearer {self._key}"}
        async with httpx.AsyncClient(headers=headers, timeout=None, follow_redirects=False) as client:
            model = self._settings.api_model or await self._first_model(client)
            body = {
                "model": model,
                "messages": [{"role": "system", "content": self._system}, {"role": "user", "content": prompt}],
                "max_tokens": self._settings.max_tokens,
                "temperature": self._settings.temperature,
                "top_p": self._settings.top_p,
                "seed": seed % 2**31,  # more than which some servers refuse
                "stream": False,
            }
            return _text(await _answer(client, "POST", self._base + _ROUTE, body))

    async def _first_model(self, client: httpx.AsyncClient) -> str:
        listed = await _answer(client, "GET", f"{self._base}/models", None)
        try:
            name = listed["data"][0]["id"]
        except (KeyError, IndexError, TypeError) as error:
            raise EnhancerFailed("lists no model; name one as api_model") from error
        if not isinstance(name, str) or not name.isprintable():
            raise EnhancerFailed(f"lists a model named {_short(name)}; name one as api_model")
        self.name = name
        return name


async def _answer(client: httpx.AsyncClient, method: str, url: str, body: Any) -> Any:
    """The JSON of an answer.

    Raises:
        EnhancerFailed: If it is an error, a redirect, too long, or no JSON.
    """
    async with client.stream(method, url, json=body) as response:
        content = bytearray()
        async for part in response.aiter_bytes():
            content += part
            if len(content) > MAX_BYTES:
                raise EnhancerFailed(f"answered with more than {MAX_BYTES} bytes")
    if response.is_redirect:
        raise EnhancerFailed(f"answered with status {response.status_code}, a redirect, which is not followed")
    if response.is_error:
        raise EnhancerFailed(f"answered with status {response.status_code}: {_short(content.decode(errors='replace'))}")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise EnhancerFailed("answered with something that is no JSON") from error


def _text(answer: Any) -> str:
    """The text of a completion that came to its end.

    Raises:
        EnhancerFailed: If there is none.
    """
    try:
        choice = answer["choices"][0]
        text, reason = choice["message"]["content"], choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise EnhancerFailed("answered with JSON that is no chat completion") from error
    if reason == "length":
        raise EnhancerFailed("was cut off before its text came to an end; raise max_tokens")
    if text is None:
        return ""
    if not isinstance(text, str):
        raise EnhancerFailed("answered with content that is no text")
    return text


def _short(what: object) -> str:
    text = " ".join(str(what).split())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
