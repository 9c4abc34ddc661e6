"""All of a text model but its weights, and requests checked against it before anything is compiled or computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from max_zimage import embedded
from max_zimage.diffusion_gemma.config_file import read_file
from max_zimage.diffusion_gemma.settings import TextDefaults, TextSettings, read_defaults
from max_zimage.diffusion_gemma.steps import Ids
from max_zimage.diffusion_gemma.tokens import TextTokenizer
from max_zimage.errors import CheckpointError, RequestError
from max_zimage.host.words import counted
from max_zimage.request.checks import Problems, whole_number
from max_zimage.sampling.noise import fresh_seed, image_seed
from max_zimage.sampling.ranges import MAX_SEED

EMBEDDED = "embedded"
"""Stands for the model that comes with the package, as its own name does."""


@dataclass(frozen=True, kw_only=True)
class TextRequest:
    """Texts that are to be written, checked.

    Attributes:
        ids: Tokens of the prompts, int64 [rows, longest], with anything behind a row's length.
        lengths: int64 [rows].
        seeds: One a row.
        settings: How they are written.
    """

    ids: Ids
    lengths: Ids
    seeds: Sequence[int]
    settings: TextSettings


@dataclass(frozen=True, kw_only=True)
class PreparedText:
    """What is known of a text model before its weights are loaded.

    Attributes:
        directory: The checkpoint.
        tokenizer: Of it.
        defaults: What it says about writing.
        canvas_length: Tokens of a canvas.
        max_length: Positions there are.
        image_tokens: Tokens that stand for images.
    """

    directory: Path
    tokenizer: TextTokenizer
    defaults: TextDefaults
    canvas_length: int
    max_length: int
    image_tokens: frozenset[int]

    def request(self, prompts: Sequence[str], seed: int | None, **numbers: object) -> TextRequest:
        """Check what is asked for.

        Args:
            prompts: At least one.
            seed: Of the first; text k has the seed (seed + k) mod 2**63. One is drawn if it is None.
            **numbers: Those of `TextSettings`; None is what the checkpoint says.

        Raises:
            RequestError: With all that is wrong: what is out of range, prompts that make no token or ask for an image,
                a prompt and a text that have more positions than the model.
            TypeError: If there is no such number.
        """
        problems, settings = Problems(), self.defaults.settings
        settings = problems.check(settings, settings.asked, **numbers)
        first = fresh_seed() if seed is None else problems.check(0, whole_number, "seed", seed, low=0, high=MAX_SEED)
        nothing = np.zeros(0, np.int64)
        encoded = [problems.check(nothing, self._encode, prompt) for prompt in prompts]
        lengths = np.array([len(ids) for ids in encoded], np.int64)
        longest = int(lengths.max())
        if longest and "max_new_tokens" not in {problem.field for problem in problems.found}:
            asked = settings.asked(max_new_tokens=numbers.get("max_new_tokens"))  # it alone, should others be wrong
            problems.check(None, self._check_room, longest, asked.max_new_tokens)
        problems.raise_if_any()
        padded = np.zeros((len(encoded), longest), np.int64)
        for row, ids in zip(padded, encoded, strict=True):
            row[: len(ids)] = ids
        seeds = [image_seed(first, row) for row in range(len(encoded))]
        return TextRequest(ids=padded, lengths=lengths, seeds=seeds, settings=settings)

    def room(self, prompt: str) -> int:
        """Most tokens that a text behind a prompt may have: those of the whole canvases for which there are positions.

        Raises:
            RequestError: If the prompt is no text, makes no token or asks for an image.
        """
        return self._left(len(self._encode(prompt)))

    def _left(self, prompt: int) -> int:
        return max(0, self.max_length - prompt) // self.canvas_length * self.canvas_length

    def _encode(self, prompt: str) -> Ids:
        ids = self.tokenizer.encode(prompt)
        found = self.image_tokens.intersection(ids.tolist())
        if found:
            raise RequestError.of(
                "prompt",
                "{field} holds the token {token}, which stands for an image, and this engine reads text only; "
                "DiffusionGemma's vision tower is not built: send text, or use transformers",
                token=min(found),
            )
        return ids

    def _check_room(self, prompt: int, max_new_tokens: int) -> None:
        blocks = -(-max_new_tokens // self.canvas_length)
        needed = prompt + blocks * self.canvas_length
        if needed <= self.max_length:
            return
        facts = {"tokens": counted(prompt, "token"), "length": self.canvas_length, "most": self.max_length}
        left = self._left(prompt)
        if not left:
            raise RequestError.of(
                "prompt",
                "{field} has {tokens}, and one canvas of {length} must have room behind it: the model has {most} "
                "positions; shorten it",
                **facts,
            )
        raise RequestError.of(
            "max_new_tokens",
            "{field} must leave room for the prompt: its {tokens} and {blocks} canvases of {length} need {needed} "
            "positions, and the model has {most}; ask for at most {left}",
            blocks=blocks,
            needed=needed,
            left=left,
            **facts,
        )


def prepare_text(path: str | Path = EMBEDDED) -> PreparedText:
    """Read a text model's configuration, its tokenizer and what it says about writing.

    Args:
        path: A directory in transformers' layout; "embedded" is the tiny model that comes with the package.

    Raises:
        CheckpointError: If the files are not those of a DiffusionGemma that this engine computes.
    """
    is_own = path in (EMBEDDED, embedded.TEXT_NAME)
    directory = embedded.TEXT_PATH if is_own else Path(path).expanduser()
    if not (directory / "config.json").is_file():
        raise CheckpointError(
            f"no text model at {directory}: a directory with config.json, tokenizer.json and model.safetensors is "
            f'needed, or "{EMBEDDED}" for the one that comes with the package'
        )
    file = read_file(directory)
    vocabulary = file.spec.vocab_size
    return PreparedText(
        directory=directory,
        tokenizer=TextTokenizer(directory, vocabulary),
        defaults=read_defaults(directory, vocabulary),
        canvas_length=file.spec.canvas_length,
        max_length=file.spec.max_positions,
        image_tokens=file.image_tokens,
    )
