"""Texts from prompts with a DiffusionGemma.

>>> from max_zimage import TextDiffusion
>>> TextDiffusion.from_pretrained().generate("red star", seed=1).text
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypedDict, Unpack, overload

import numpy as np

from max_zimage.diffusion_gemma.generate import BlockDraft, write_blocks
from max_zimage.diffusion_gemma.model_graphs import CompiledDiffusionGemma
from max_zimage.diffusion_gemma.prepared import EMBEDDED, PreparedText, TextRequest, prepare_text
from max_zimage.diffusion_gemma.settings import TextSettings
from max_zimage.diffusion_gemma.steps import DiffusionSteps, Ids
from max_zimage.errors import RequestError
from max_zimage.strict_json import shown

OnDraft = Callable[["TextDraft"], None]


class Numbers(TypedDict, total=False):
    """Arguments of `TextDiffusion.generate` that are numbers of `TextSettings`; None is what the checkpoint says."""

    max_new_tokens: int | None
    num_denoising_steps: int | None
    entropy_bound: float | None
    t_max: float | None
    t_min: float | None
    confidence_threshold: float | None
    stability_threshold: int | None


@dataclass(frozen=True, kw_only=True)
class TextDraft:
    """A text on the way, after a denoising step.

    Attributes:
        row: Which of the prompts, from 0.
        text: What would be written if this were the last step.
        canvas: Which canvas, from 1.
        step: Steps that the canvas has had.
        num_steps: Most that it may have.
        settled: Whether the canvas is done.
    """

    row: int
    text: str
    canvas: int
    step: int
    num_steps: int
    settled: bool


@dataclass(frozen=True, kw_only=True)
class TextResult:
    """A text.

    Attributes:
        text: Without special tokens.
        token_ids: Its tokens, up to the one that ended it.
        seed: Makes it again with the same prompt and numbers.
        steps: Denoising steps, over all canvases.
        canvases: Canvases that were written.
        ended: Whether the model ended it; otherwise it was cut at `max_new_tokens`.
        prompt_tokens: Of the prompt, the chat template's included.
    """

    text: str
    token_ids: tuple[int, ...]
    seed: int
    steps: int
    canvases: int
    ended: bool
    prompt_tokens: int

    @property
    def tokens_per_step(self) -> float:
        """Tokens that a denoising step was worth, the one that ended the text included."""
        return (len(self.token_ids) + self.ended) / self.steps


class TextDiffusion:
    """A DiffusionGemma with its tokenizer: prompts in, texts out.

    Args:
        prepared: Of the checkpoint.
        model: What encodes, denoises and commits.
    """

    def __init__(self, prepared: PreparedText, model: DiffusionSteps) -> None:
        self._prepared, self._model = prepared, model

    @classmethod
    def from_pretrained(cls, path: str | Path = EMBEDDED, device: str = "cpu", *, dtype: str = "auto") -> Self:
        """Load a checkpoint and compile its graphs, or find them on disk.

        Args:
            path: A directory in transformers' layout; "embedded" is the tiny model that comes with the package, which
                writes captions of coloured shapes.
            device: "auto", "cpu", "gpu" or "gpu:N".
            dtype: "float32", "bfloat16", or "auto": float32 on a CPU, bfloat16 on a GPU.

        Raises:
            CheckpointError: If the files are not those of a DiffusionGemma that this engine computes.
            RequestError: If there is no such device, or it lacks a library.
            NotEnoughMemoryError: If the weights do not fit; before they are loaded.
            ValueError: If there is no such dtype, or a variable of the environment has no meaning.
        """
        return cls.from_prepared(prepare_text(path), device, dtype=dtype)

    @classmethod
    def from_prepared(cls, prepared: PreparedText, device: str = "cpu", *, dtype: str = "auto") -> Self:
        """Load the weights of what `prepare_text` has read, with the arguments and errors of `from_pretrained`."""
        return cls(prepared, CompiledDiffusionGemma.from_pretrained(prepared.directory, device=device, dtype=dtype))

    @property
    def settings(self) -> TextSettings:
        """What a request that names no number is written with."""
        return self._prepared.defaults.settings

    def room(self, prompt: str) -> int:
        """Most tokens that a text behind a prompt may have, in whole canvases; 0 if there is room for none.

        Raises:
            RequestError: If the prompt is no text, makes no token or asks for an image.
        """
        return self._prepared.room(prompt)

    @overload
    def generate(  # type: ignore[overload-overlap]  # a text is a sequence of texts, too
        self, prompt: str, *, seed: int | None = None, on_draft: OnDraft | None = None, **numbers: Unpack[Numbers]
    ) -> TextResult: ...

    @overload
    def generate(
        self,
        prompt: Sequence[str],
        *,
        seed: int | None = None,
        on_draft: OnDraft | None = None,
        **numbers: Unpack[Numbers],
    ) -> list[TextResult]: ...

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        seed: int | None = None,
        on_draft: OnDraft | None = None,
        **numbers: Unpack[Numbers],
    ) -> TextResult | list[TextResult]:
        """Write behind a prompt, or behind each of several at once.

        Args:
            prompt: What a user says; the checkpoint's chat template is put around it.
            seed: 0 to 2**63 - 1; text k of several has the seed (seed + k) mod 2**63. One is drawn if it is None.
            on_draft: Called after each denoising step, for each prompt; what it raises ends the writing.
            **numbers: max_new_tokens, num_denoising_steps, entropy_bound, t_max, t_min, confidence_threshold and
                stability_threshold, see `TextSettings`; None is what the checkpoint says.

        Raises:
            RequestError: If a number is out of range, there is no prompt, a prompt makes no token or asks for an image,
                or prompt and text have more positions than the model; before anything is computed.
            TypeError: If there is no such number.
            NotFiniteError: If a text came out as NaN or infinity.
        """
        if isinstance(prompt, str):
            return self._write(self._prepared.request([prompt], seed, **numbers), on_draft)[0]
        if not (isinstance(prompt, Sequence) and prompt):
            raise RequestError.of(
                "prompt", "{field} must be a text, or a list of at least one, got {given}", given=shown(prompt)
            )
        return self._write(self._prepared.request(prompt, seed, **numbers), on_draft)

    def _write(self, request: TextRequest, on_draft: OnDraft | None) -> list[TextResult]:
        settings, defaults = request.settings, self._prepared.defaults

        def tell(draft: BlockDraft) -> None:
            if on_draft is None:
                return
            for row, tokens in enumerate(np.concatenate([draft.written, draft.argmax], axis=1)):
                on_draft(
                    TextDraft(
                        row=row,
                        text=self._prepared.tokenizer.decode(self._text_of(tokens, settings)),
                        canvas=draft.block + 1,
                        step=draft.step,
                        num_steps=settings.num_denoising_steps,
                        settled=bool(draft.settled[row]),
                    )
                )

        out = write_blocks(
            self._model,
            request.ids,
            request.lengths,
            request.seeds,
            settings,
            ends=defaults.ends,
            pad=defaults.pad,
            on_draft=tell,
        )
        rows = zip(out.ids, out.steps, request.seeds, request.lengths, strict=True)
        return [self._result(ids, int(steps), seed, int(length), settings) for ids, steps, seed, length in rows]

    def _result(self, ids: Ids, steps: int, seed: int, prompt_tokens: int, settings: TextSettings) -> TextResult:
        kept, end = self._text_of(ids, settings), self._end(ids)
        written = min(end + 1, len(ids))
        return TextResult(
            text=self._prepared.tokenizer.decode(kept),
            token_ids=kept,
            seed=seed,
            steps=steps,
            canvases=-(-written // self._model.canvas_length),
            ended=end < len(ids) and end <= settings.max_new_tokens,
            prompt_tokens=prompt_tokens,
        )

    def _text_of(self, ids: Ids, settings: TextSettings) -> tuple[int, ...]:
        """Tokens before the first end, and no more than were asked for."""
        return tuple(ids[: min(self._end(ids), settings.max_new_tokens)].tolist())

    def _end(self, ids: Ids) -> int:
        """Where the first end stands; behind the last token if there is none."""
        found = np.flatnonzero(np.isin(ids, self._prepared.defaults.ends))
        return int(found[0]) if len(found) else len(ids)
