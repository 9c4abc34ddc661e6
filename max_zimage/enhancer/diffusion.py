"""DiffusionGemma as an enhancer: the model that comes with the package, or one of the published ones."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from typing_extensions import override

from max_zimage import embedded
from max_zimage.enhancer.base import Enhancer, EnhancerFailed, in_time
from max_zimage.enhancer.chat import ChatAnswer, ChatAsked, ChatModel, ChatRefused
from max_zimage.enhancer.settings import EMBEDDED, EnhancerSettings
from max_zimage.errors import NotFiniteError, RequestError, Wording

_CHAT = Wording(names={"prompt": "messages.0.content", "max_new_tokens": "max_tokens (or max_completion_tokens)"})


class DiffusionEnhancer(Enhancer, ChatModel):
    """Writes with `max_zimage.TextDiffusion`.

    The embedded model was trained to write prompts out and is given them as they are; any other is told to first.

    Args:
        settings: Whose model is "embedded" or a folder; they were checked.
        load: Makes the model of a name; in place of `TextDiffusion.from_pretrained`.
    """

    drafts = True

    def __init__(self, settings: EnhancerSettings, load: Callable[[str], Any] | None = None) -> None:
        self._settings, self._load = settings, load or _from_pretrained
        self.seconds = settings.seconds
        self._is_embedded = settings.model == EMBEDDED
        self._system = "" if self._is_embedded else f"{settings.system()}\n\n"
        self.name = embedded.TEXT_NAME if self._is_embedded else Path(str(settings.model)).resolve().name
        self._model: Any = None
        self._turn = threading.Lock()

    @override
    def load(self) -> None:
        with self._turn:
            if self._model is None:
                self._model = self._load(str(self._settings.model))

    @override
    def weights(self) -> Mapping[str, int]:
        from max_zimage.diffusion_gemma.weights import weights_of  # brings MAX along

        name = str(self._settings.model)
        return weights_of(embedded.TEXT_PATH if self._is_embedded else Path(name).expanduser(), _device(name))

    @override
    def write(self, prompt: str, seed: int) -> str:
        self.load()
        told = in_time(self.seconds)
        text = self._system + prompt
        try:
            with self._turn:
                more = {} if self._is_embedded else {"max_new_tokens": self._most(text, self._settings.max_tokens)}
                found = self._model.generate(text, seed=seed, on_draft=told, **more)
        except NotFiniteError as error:
            raise EnhancerFailed(f"found no words: {error}") from error
        except ValueError as error:  # a prompt that is too long for it, or that its tokenizer does not know
            raise EnhancerFailed(f"cannot read the prompt: {error}") from error
        if not found.ended:
            raise EnhancerFailed("was cut off before its text came to an end; raise max_tokens")
        return str(found.text)

    def _most(self, prompt: str, asked: int) -> int:
        """Tokens that a text may have: those asked for, or where that is the most of any, those there is room for.

        A smaller limit is somebody's own: it stays, and is refused where the positions do not suffice.
        """
        return asked if asked < self.most_tokens else max(1, min(asked, self._model.room(prompt)))

    @property
    @override
    def most_tokens(self) -> int:
        return self._settings.max_tokens

    @override
    def check(self, asked: ChatAsked) -> None:
        if len(asked.messages) > 1:
            message = (
                f"messages: {self.name} reads one message of a user, got {len(asked.messages)}; leave the others out"
            )
            raise ChatRefused("messages", message)

    @override
    def chat(self, asked: ChatAsked) -> ChatAnswer:
        self.check(asked)
        self.load()
        (message,) = asked.messages
        try:
            with self._turn:
                found = self._model.generate(
                    message.content,
                    seed=asked.seed,
                    max_new_tokens=self._most(message.content, asked.max_tokens),
                    on_draft=lambda draft: asked.on_draft(draft.text),
                )
        except RequestError as error:
            is_limit = {problem.field for problem in error.problems} == {"max_new_tokens"}
            raise ChatRefused("max_tokens" if is_limit else "messages", error.said(_CHAT)) from error
        except ValueError as error:
            raise ChatRefused("messages", f"messages: {error}") from error
        asked.on_text(found.text)
        return ChatAnswer(
            text=found.text, is_whole=found.ended, prompt_tokens=found.prompt_tokens, tokens=len(found.token_ids)
        )


def _from_pretrained(name: str) -> Any:
    from max_zimage.diffusion_gemma.text_diffusion import TextDiffusion  # brings MAX along

    return TextDiffusion.from_pretrained(name, _device(name))


def _device(name: str) -> str:
    # The tiny one gains nothing by an accelerator, and leaves it to the pictures.
    return "cpu" if name == EMBEDDED else "auto"
