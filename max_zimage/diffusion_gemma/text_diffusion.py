"""Texts from prompts with a DiffusionGemma.

>>> from max_zimage import TextDiffusion
>>> TextDiffusion.from_pretrained().generate("red star", seed=1).text
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, overload

import numpy as np

from max_zimage import embedded
from max_zimage.diffusion_gemma.generate import BlockDraft, write_blocks
from max_zimage.diffusion_gemma.settings import TextDefaults, TextSettings, read_defaults
from max_zimage.diffusion_gemma.steps import DiffusionSteps
from max_zimage.diffusion_gemma.tokens import TextTokenizer
from max_zimage.errors import CheckpointError, RequestError
from max_zimage.request.checks import whole_number
from max_zimage.sampling.noise import fresh_seed, image_seed
from max_zimage.sampling.ranges import MAX_SEED

EMBEDDED = "embedded"
"""Stands for the model that comes with the package, as its own name does."""


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
        model: What encodes, denoises and commits.
        tokenizer: The checkpoint's.
        defaults: What the checkpoint says about writing.
    """

    def __init__(self, model: DiffusionSteps, tokenizer: TextTokenizer, defaults: TextDefaults) -> None:
        self._model, self._tokenizer, self._defaults = model, tokenizer, defaults

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
            RequestError: If there is no such device.
            ValueError: If there is no such dtype.
        """
        from max_zimage.diffusion_gemma.model_graphs import CompiledDiffusionGemma  # brings MAX along

        folder = text_model_path(path)
        if not (folder / "config.json").is_file():
            raise CheckpointError(
                f"no text model at {folder}: a directory with config.json, tokenizer.json and model.safetensors is "
                f'needed, or "{EMBEDDED}" for the one that comes with the package'
            )
        model = CompiledDiffusionGemma.from_pretrained(folder, device=device, dtype=dtype)
        tokenizer = TextTokenizer(folder, model.vocab_size)
        return cls(model, tokenizer, read_defaults(folder, model.vocab_size))

    @property
    def settings(self) -> TextSettings:
        """What a request that names no number is written with."""
        return self._defaults.settings

    def count_tokens(self, prompt: str) -> int:
        """Tokens of a prompt, the chat template's included; errors are those of `generate`."""
        return len(self._tokenizer.encode(prompt))

    @overload
    def generate(
        self,
        prompt: str,
        *,
        seed: int | None = None,
        max_new_tokens: int | None = None,
        num_denoising_steps: int | None = None,
        entropy_bound: float | None = None,
        t_max: float | None = None,
        t_min: float | None = None,
        confidence_threshold: float | None = None,
        stability_threshold: int | None = None,
        on_draft: Callable[[TextDraft], None] | None = None,
    ) -> TextResult: ...

    @overload
    def generate(
        self,
        prompt: Sequence[str],
        *,
        seed: int | None = None,
        max_new_tokens: int | None = None,
        num_denoising_steps: int | None = None,
        entropy_bound: float | None = None,
        t_max: float | None = None,
        t_min: float | None = None,
        confidence_threshold: float | None = None,
        stability_threshold: int | None = None,
        on_draft: Callable[[TextDraft], None] | None = None,
    ) -> list[TextResult]: ...

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        seed: int | None = None,
        max_new_tokens: int | None = None,
        num_denoising_steps: int | None = None,
        entropy_bound: float | None = None,
        t_max: float | None = None,
        t_min: float | None = None,
        confidence_threshold: float | None = None,
        stability_threshold: int | None = None,
        on_draft: Callable[[TextDraft], None] | None = None,
    ) -> TextResult | list[TextResult]:
        """Write behind a prompt, or behind each of several at once.

        Args:
            prompt: What a user says; the checkpoint's chat template is put around it.
            seed: 0 to 2**63 - 1; text k of several has the seed (seed + k) mod 2**63. One is drawn if it is None.
            max_new_tokens: See `TextSettings`, as for all that follow: None is what the checkpoint says.
            num_denoising_steps: Most steps of a canvas.
            entropy_bound: In nats.
            t_max: Temperature of the first step.
            t_min: That the steps go down to.
            confidence_threshold: In nats.
            stability_threshold: In steps.
            on_draft: Called after each denoising step, for each prompt; what it raises ends the writing.

        Raises:
            RequestError: If a number is out of range, there is no prompt, a prompt makes no token, or prompt and text
                have more positions than the model; before anything is computed.
        """
        settings = self.settings.asked(
            max_new_tokens=max_new_tokens,
            num_denoising_steps=num_denoising_steps,
            entropy_bound=entropy_bound,
            t_max=t_max,
            t_min=t_min,
            confidence_threshold=confidence_threshold,
            stability_threshold=stability_threshold,
        )
        first = fresh_seed() if seed is None else whole_number("seed", seed, low=0, high=MAX_SEED)
        if isinstance(prompt, str):
            return self._write([prompt], first, settings, on_draft)[0]
        if not isinstance(prompt, Sequence) or not prompt:
            raise RequestError.of("prompt", "{field} must be a text or a list of at least one, got {given}", given=prompt)
        return self._write(prompt, first, settings, on_draft)

    def _write(
        self, prompts: Sequence[str], seed: int, settings: TextSettings, on_draft: Callable[[TextDraft], None] | None
    ) -> list[TextResult]:
        encoded = [self._tokenizer.encode(prompt) for prompt in prompts]
        lengths = np.array([len(ids) for ids in encoded], np.int64)
        ids = np.zeros((len(prompts), int(lengths.max())), np.int64)
        for row, tokens in zip(ids, encoded, strict=True):
            row[: len(tokens)] = tokens
        seeds = [image_seed(seed, row) for row in range(len(prompts))]

        def tell(draft: BlockDraft) -> None:
            if on_draft is None:
                return
            for row, tokens in enumerate(np.concatenate([draft.written, draft.argmax], axis=1)):
                on_draft(
                    TextDraft(
                        row=row,
                        text=self._tokenizer.decode(self._text_of(tokens, settings)),
                        canvas=draft.block + 1,
                        step=draft.step,
                        num_steps=settings.num_denoising_steps,
                        settled=bool(draft.settled[row]),
                    )
                )

        ends, pad = self._defaults.ends, self._defaults.pad
        out = write_blocks(self._model, ids, lengths, seeds, settings, ends=ends, pad=pad, on_draft=tell)
        return [
            self._result(tokens, int(steps), each, settings, int(length))
            for tokens, steps, each, length in zip(out.ids, out.steps, seeds, lengths, strict=True)
        ]

    def _result(
        self, tokens: np.ndarray[tuple[int, ...], np.dtype[np.int64]], steps: int, seed: int, settings: TextSettings, prompt: int
    ) -> TextResult:
        kept = self._text_of(tokens, settings)
        whole = len(kept) < min(len(tokens), settings.max_new_tokens)
        return TextResult(
            text=self._tokenizer.decode(kept),
            token_ids=kept,
            seed=seed,
            steps=steps,
            canvases=-(-(len(kept) + whole) // self._model.canvas_length),
            ended=whole,
            prompt_tokens=prompt,
        )

    def _text_of(self, tokens: np.ndarray[tuple[int, ...], np.dtype[np.int64]], settings: TextSettings) -> tuple[int, ...]:
        """Tokens before the first end, and no more than were asked for."""
        found = np.flatnonzero(np.isin(tokens, self._defaults.ends))
        end = int(found[0]) if len(found) else len(tokens)
        return tuple(int(token) for token in tokens[: min(end, settings.max_new_tokens)])


def text_model_path(path: str | Path) -> Path:
    """The directory of a text model: the embedded one by either name, or the one that is given."""
    return embedded.TEXT_PATH if path in (EMBEDDED, embedded.TEXT_NAME) else Path(path).expanduser()
