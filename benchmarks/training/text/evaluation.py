"""How well short prompts become captions: what was asked for is kept, the rest is well-formed and of all kinds.

Every kind of prompt is always the same list. transformers and the engine write by the same random numbers.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from transformers.models.diffusion_gemma.modeling_diffusion_gemma import DiffusionGemmaForBlockDiffusion

from benchmarks.measure import Conditions
from benchmarks.training.text.data import left_padded, prompt_ids, tokenizer_of
from benchmarks.training.text.prompts import mistyped, phrase
from benchmarks.training.text.wishes import Look, Wish, apart, caption_of, keeps, partly, random_wish, read, said
from tests.references.scenes import COLORS
from tests.references.text_steps import drawn_as_the_engine_draws

Write = Callable[[Sequence[str], int], list[tuple[str, int]]]
"""write(prompts, seed) -> the caption of each, and in how many steps; prompt k has the seed (seed + k)."""

BATCH = 100
_SEED = 47
FIRST_SEED = 47_000_000


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of prompt.

    Attributes:
        name: As a table has it.
        make: Draws a prompt and what it asks for.
        is_free: Whether nobody names colours, so that those that are chosen are counted.
    """

    name: str
    make: Callable[[np.random.Generator], tuple[str, Wish]]
    is_free: bool = False


def _part(objects: int) -> Callable[[np.random.Generator], tuple[str, Wish]]:
    def make(chance: np.random.Generator) -> tuple[str, Wish]:
        asked = partly(chance, random_wish(chance, 1 if objects == 1 else 2))
        prompt = phrase(chance, asked, reverse=False)
        return prompt, asked if prompt else Wish(objects=())  # of no word may come any number of objects

    return make


def _unseen(objects: int) -> Callable[[np.random.Generator], tuple[str, Wish]]:
    def make(chance: np.random.Generator) -> tuple[str, Wish]:
        asked = said(random_wish(chance, 1 if objects == 1 else 2, unseen=True))
        if objects == 2:
            asked = _without_sizes(asked)
        return phrase(chance, asked, reverse=False), asked

    return make


def _without_sizes(wish: Wish) -> Wish:
    return Wish(
        objects=tuple(look._replace(size=None) for look in wish.objects), relation=wish.relation, ground=wish.ground
    )


def _turned(chance: np.random.Generator) -> tuple[str, Wish]:
    while True:
        asked = partly(chance, random_wish(chance, 2))
        if asked.relation in ("above", "to the left of"):
            return phrase(chance, asked, reverse=True), asked


def _slips(chance: np.random.Generator) -> tuple[str, Wish]:
    while True:
        asked = partly(chance, random_wish(chance, 1))
        clean = phrase(chance, asked)
        slipped = mistyped(chance, clean)
        if slipped != clean:
            return slipped, asked


def _shape_alone(chance: np.random.Generator) -> tuple[str, Wish]:
    shape = random_wish(chance, 1).objects[0].shape
    return str(shape), Wish(objects=(Look(None, None, shape),))


def _nothing(chance: np.random.Generator) -> tuple[str, Wish]:
    return "", Wish(objects=())


KINDS = (
    Kind(name="one object, some words", make=_part(1)),
    Kind(name="two objects, some words", make=_part(2)),
    Kind(name="one object, all said, never seen", make=_unseen(1)),
    Kind(name="two objects, all said, never seen", make=_unseen(2)),
    Kind(name="two objects, right of or below", make=_turned),
    Kind(name="one object, with a slip", make=_slips),
    Kind(name="a shape alone", make=_shape_alone, is_free=True),
    Kind(name="nothing", make=_nothing, is_free=True),
)


def prompts_of(kind: Kind, count: int) -> list[tuple[str, Wish]]:
    """The prompts of a kind with what they ask for; always the same."""
    chance = np.random.default_rng((_SEED, [each.name for each in KINDS].index(kind.name)))
    return [kind.make(chance) for _ in range(count)]


@dataclass(frozen=True, kw_only=True)
class Score:
    """What became of the prompts of one kind; shares are of all of them.

    Attributes:
        kind: Its name.
        writer: Who wrote.
        prompts: How many.
        grammar: Share that reads as a caption.
        kept: Share that says all that was asked for, of no more and no fewer objects.
        articles: Share whose articles are right, too.
        apart: Share in which no object has its ground's colour.
        spread: Entropy of the first object's colours as a share of an even choice; None where people named them.
        steps: Mean denoising steps.
    """

    kind: str
    writer: str
    prompts: int
    grammar: float
    kept: float
    articles: float
    apart: float
    spread: float | None
    steps: float


def scored(kind: Kind, writer: str, write: Write, count: int) -> Score:
    """Write for the prompts of a kind, and read what was written."""
    asked = prompts_of(kind, count)
    texts: list[tuple[str, int]] = []
    for begin in range(0, count, BATCH):
        texts += write([prompt for prompt, _ in asked[begin : begin + BATCH]], FIRST_SEED + begin)
    read_back = [(read(text), text) for text, _ in texts]
    wishes = [wish for wish, _ in read_back if wish]
    return Score(
        kind=kind.name,
        writer=writer,
        prompts=count,
        grammar=len(wishes) / count,
        kept=sum(wish is not None and keeps(wish, w) for (wish, _), (_, w) in zip(read_back, asked, strict=True))
        / count,
        articles=sum(wish is not None and caption_of(wish) == text for wish, text in read_back) / count,
        apart=sum(map(apart, wishes)) / count,
        spread=_spread([str(wish.objects[0].color) for wish in wishes]) if kind.is_free else None,
        steps=sum(steps for _, steps in texts) / count,
    )


def told(score: Score) -> str:
    """A score in a line."""
    spread = "" if score.spread is None else f"  spread {score.spread:.3f}"
    return (
        f"{score.kind:33} {score.writer:12}  grammar {score.grammar:.3f}  kept {score.kept:.3f}  "
        f"articles {score.articles:.3f}  apart {score.apart:.3f}  steps {score.steps:.1f}{spread}"
    )


def save(file: Path, scores: Sequence[Score]) -> None:
    """Write scores with what computed them as CSV."""
    conditions = Conditions.now()
    around = {"cpu": conditions.cpu, "date": conditions.date, "commit": conditions.commit, "max": conditions.max}
    around |= {name: version(name) for name in ("torch", "transformers")}
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as target:
        rows = [{name: _short(value) for name, value in asdict(score).items()} | around for score in scores]
        writer = csv.DictWriter(target, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _short(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else value


def _spread(colors: Sequence[str]) -> float:
    shares = np.array(list(Counter(colors).values())) / max(1, len(colors))
    return float(-(shares * np.log(shares)).sum() / np.log(len(COLORS))) if len(colors) else 0.0


def with_transformers(directory: Path) -> Write:
    """The reference, float32, on all threads that torch has."""
    model = DiffusionGemmaForBlockDiffusion.from_pretrained(directory, dtype=torch.float32).eval()
    model.set_experts_implementation("eager")
    tokenizer = tokenizer_of(directory)
    vocabulary, end = model.config.text_config.vocab_size, model.generation_config.eos_token_id

    def write(prompts: Sequence[str], seed: int) -> list[tuple[str, int]]:
        ids, lengths = left_padded([prompt_ids(tokenizer, prompt) for prompt in prompts], tokenizer.pad_token_id)
        mask = torch.arange(ids.shape[1]) >= (ids.shape[1] - lengths)[:, None]
        seeds = [seed + row for row in range(len(prompts))]
        with drawn_as_the_engine_draws(seeds, vocabulary, model.config.canvas_length):
            out = model.generate(ids, attention_mask=mask)
        tokens = out.sequences[:, ids.shape[1] :]
        counted = (tokens != model.generation_config.pad_token_id).sum(dim=1)
        steps = (counted / out.tokens_per_forward).round().int().tolist()
        texts = [str(tokenizer.decode(row[: _end(row, end)], skip_special_tokens=True)) for row in tokens.tolist()]
        return list(zip(texts, steps, strict=True))

    return write


def with_engine(directory: Path) -> Write:
    """The engine on a CPU, float32."""
    from max_zimage import TextDiffusion  # here: the name brings MAX along, which training needs not

    model = TextDiffusion.from_pretrained(directory, device="cpu", dtype="float32")

    def write(prompts: Sequence[str], seed: int) -> list[tuple[str, int]]:
        return [(each.text, each.steps) for each in model.generate(list(prompts), seed=seed)]

    return write


def _end(tokens: Sequence[int], end: int) -> int:
    return tokens.index(end) if end in tokens else len(tokens)
