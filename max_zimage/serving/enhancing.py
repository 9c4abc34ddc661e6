"""The enhancer of a server: prompts and chats wait for their turn at it, and for no longer than a bound."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from max_zimage.enhancer.apply import Applied, Check, applied
from max_zimage.enhancer.base import Enhancer, in_time, unchanged, waited_for
from max_zimage.enhancer.chat import ChatAnswer, ChatAsked, ChatModel
from max_zimage.request.request import GenerationRequest
from max_zimage.serving.errors import ApiError

_log = logging.getLogger("max_zimage.serving")
T = TypeVar("T")
_NO_HEADER = re.compile(r"[^\x20-\x7e]")


@dataclass(frozen=True, kw_only=True)
class Revision:
    """A request that is to be drawn, and what its answer says of its prompt.

    Attributes:
        request: The request.
        prompt: The prompt that was written out; None for none.
        notes: Why the prompt is drawn as it was given, in sentences.
    """

    request: GenerationRequest
    prompt: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def facts(self) -> dict[str, Any]:
        """What an answer says beside its pictures."""
        return {"warnings": list(self.notes)} if self.notes else {}

    @property
    def headers(self) -> dict[str, str]:
        """The same for answers that have no place for it, in what a header may hold."""
        said = _NO_HEADER.sub("?", " ".join(" ".join(self.notes).split()))
        return {"X-Enhance-Note": said} if said else {}

    @property
    def of_picture(self) -> dict[str, Any]:
        """What it says of each picture."""
        return {} if self.prompt is None else {"revised_prompt": self.prompt}


class EnhancerDesk:
    """One enhancer, and who waits for it.

    Its work runs in threads, which nothing can end from outside: one that takes too long, or whose client has left,
    ends at the model's next step and keeps its turn until then, while the request that asked goes on without it.

    Args:
        enhancer: Checked, not loaded. A prompt or a chat may take as long as it says, waiting included.
        waiting: Requests that may wait.

    Attributes:
        is_ready: Whether it is loaded; one that has nothing to load is from the start.
    """

    def __init__(self, enhancer: Enhancer, *, waiting: int) -> None:
        self.enhancer, self._seconds, self._most = enhancer, enhancer.seconds, waiting
        self._turns = asyncio.Semaphore(enhancer.workers)
        self._waiting = 0
        self.is_ready = type(enhancer).load is Enhancer.load

    @property
    def chat_model(self) -> ChatModel | None:
        """The model that answers chats; None where the enhancer has none in this process."""
        return self.enhancer if isinstance(self.enhancer, ChatModel) else None

    async def load(self) -> None:
        """Load it; until then nobody is let in."""
        await self._work(self.enhancer.load)
        self.is_ready = True
        _log.info("enhancer %s: ready", self.enhancer.name)

    async def keep(self) -> None:
        """Load it, then wait for ever: a task that ends is one that failed."""
        await self.load()
        await asyncio.Event().wait()

    async def revised(self, asked: GenerationRequest, check: Check) -> Revision:
        """Write the prompt of a request out, or say why it is drawn as it was given.

        Args:
            asked: It asks for that.
            check: Of a text in place of its prompt.

        Raises:
            ApiError: 503 while it is being loaded, 429 if too many wait.
        """
        self._enter()
        try:
            async with asyncio.timeout(self._seconds):
                done = await self._work(lambda: applied(asked, self.enhancer, check))
        except TimeoutError:
            late = unchanged("", self.enhancer.name, f"did not answer within {self._seconds:g} s")
            done = Applied(request=replace(asked, enhance=False, enhance_seed=None), notes=(late.note,))
        finally:
            self._leave()
        is_written = bool(done.request.original_prompts)
        return Revision(request=done.request, prompt=done.request.prompts[0] if is_written else None, notes=done.notes)

    def begin(self, model: ChatModel, asked: ChatAsked) -> asyncio.Task[ChatAnswer]:
        """Take a place, and have a chat answered; to cancel the task is to leave.

        The task fails with an ApiError, 429, if it takes too long, and with ChatRefused if the model cannot take it.

        Args:
            model: See `chat_model`.
            asked: It was checked.

        Raises:
            ApiError: 503 while it is being loaded, 429 if too many wait.
        """
        self._enter()
        task = asyncio.create_task(self._answer(model, asked))
        task.add_done_callback(lambda _: self._leave())  # also of one that is cancelled before it runs
        return task

    async def _answer(self, model: ChatModel, asked: ChatAsked) -> ChatAnswer:
        def work() -> ChatAnswer:
            step = in_time(math.inf)  # the bound is kept below

            def on_text(text: str) -> None:
                step(text)
                asked.on_text(text)

            def on_draft(text: str) -> None:
                step(text)
                asked.on_draft(text)

            return model.chat(replace(asked, on_text=on_text, on_draft=on_draft))

        try:
            async with asyncio.timeout(self._seconds):
                return await self._work(work)
        except TimeoutError:
            message = f"this server gives an answer {self._seconds:g} s, and they were over; ask for fewer tokens"
            raise ApiError(429, "time_limit", message, headers={"Retry-After": "10"}) from None

    def _enter(self) -> None:
        if not self.is_ready:
            message = "the enhancer is being loaded, which takes minutes the first time; ask /readyz when it is there"
            raise ApiError(503, "loading", message, headers={"Retry-After": "5"})
        if self._waiting >= self._most:
            message = f"{self._waiting} prompts wait for the enhancer, as many as this server allows; try again later"
            raise ApiError(429, "queue_full", message, headers={"Retry-After": "1"})
        self._waiting += 1

    def _leave(self) -> None:
        self._waiting -= 1

    async def _work(self, work: Callable[[], T]) -> T:
        """Run something in a thread of its own when it is its turn, which lasts until it is done.

        To cancel this is to leave: what is written ends at its next step.
        """
        await self._turns.acquire()
        left = threading.Event()
        loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def tell(result: T | None, error: BaseException | None) -> None:
            self._turns.release()
            if done.cancelled():
                return
            if error is None:
                done.set_result(result)  # type: ignore[arg-type]
            else:
                done.set_exception(error)

        def run() -> None:
            result, failed = None, None
            try:
                with waited_for(lambda: not left.is_set()):
                    result = work()
            except BaseException as error:
                failed = error
            with contextlib.suppress(RuntimeError):  # the server has ended
                loop.call_soon_threadsafe(tell, result, failed)

        # No executor's thread: the process would wait for it before it ends.
        threading.Thread(target=run, name="enhancer", daemon=True).start()
        try:
            return await done
        finally:
            left.set()
