"""The text model's card: what it is, what it writes and how well, how it was made, with one evaluation's numbers."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from safetensors import safe_open

from benchmarks.training.scenes import held_out
from benchmarks.training.text.loss import CANVASES
from benchmarks.training.text.model import CANVAS
from benchmarks.training.text.recipe import TextPlan
from tests.references.scenes import COLORS, SHAPES

_CARD = """# tiny-diffusion-gemma: the embedded text model

A DiffusionGemma in the layout of transformers, small enough to ship, trained from nothing: it makes a full caption of a
short prompt, such as [tiny-zimage](../tiny-zimage/README.md) was trained on. It is to keep what was said and to draw
the rest at random, all of it fitting together: articles, and a ground of another colour than what stands on it. How
often it does is below.

| shape | |
|---|---|
| layers | {layers}: {full} see everything, {sliding} a window of {window} tokens |
| hidden | {hidden}; dense {dense}, {experts} experts of {expert}, {chosen} a token |
| heads | {heads} of {head_dim}, in full layers {global_head_dim} wide |
| vocabulary | {vocabulary}, the tokenizer of tiny-zimage with a chat template of its own |
| canvas | {canvas} tokens: every caption and its end |
| parameters | {parameters:.2f} M, bfloat16, {megabytes:.1f} MB |

transformers builds the class with a vision tower only, so that there is one of five thousand random parameters; nothing
reads it.

## What it writes

{examples}

One object or two, their words in any order, with the usual slips: a letter left out, doubled or exchanged with the
next, a capital, a full stop, a plural. "grey", "big", "tiny", "over", "left of", "with" and the like are understood;
"below" and "right of" turn two objects round. Sizes are for one object, as in tiny-zimage's captions. Other words mean
nothing.

{held_out} of the {combinations:,} combinations of colour, shape and ground are in no caption that it learned from:
those that tiny-zimage never saw. {prompts} prompts of each kind, always the same:

| prompts | written by | a caption | all kept | articles right | ground apart | spread of colours | steps |
|---|---|---|---|---|---|---|---|
{rows}

All kept: everything that was said, and as many objects. Spread: the entropy of the colours of first objects that
nobody named, as a share of an even choice's. Never seen: every object is of a combination that training never showed.
What goes wrong most often is a ground that nobody named: it gets an object's colour.
float32, {machine}.

## How it was made

In the project's source, `make text-model ARGS="train DIR"` makes one like it, from fixed seeds:

- {steps:,} steps of {batch} prompts and captions{parts}.
- {canvases} canvases for each caption, each with a level of noise from 0 to 1, high ones more often than low ones;
  every token replaced, with that probability, by any of the vocabulary; cross-entropy at all places, on the last canvas
  with the logits of a pass before.{noise}
- Beside it, with the same weight, the encoder learns the next token of the caption.
- Products in bfloat16 where the processor has them, all else in float32.
- Matrices by Muon, embeddings, routers, experts and vectors by AdamW; learning rates that stay and then fall to
  nothing; running averages of all weights.

Nothing was taken from another model. Licence: Apache 2.0, as the project.
"""

_NOISE = " In the last {parts}, {share:.0%} of the replaced tokens are words of captions."
_VAGUE = (
    "\n- In the last part, {few:.0%} of the canvases have little noise, and {vague:.0%} of the prompts say nothing, or"
    "\n  shapes alone: what words say of each other is learned there, such as that a ground is of another colour."
)
_PARTS = ", in {} parts, each of which begins with the average of the\n  weights that the one before ended with"

EXAMPLES = ("red star", "blue circle green ring", "square below heart on black", "Big grey triangles.")
"""Prompts on the card."""


def write_card(checkpoint: Path, results: Path, plans: Sequence[TextPlan], captions: Sequence[str]) -> None:
    """Write README.md into a checkpoint.

    Args:
        checkpoint: Finished.
        results: The CSV file of its evaluation.
        plans: That it was trained by.
        captions: What it writes for `EXAMPLES`.
    """
    with results.open(newline="", encoding="utf-8") as file:
        scores = list(csv.DictReader(file))
    text = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))["text_config"]
    kinds = text["layer_types"]
    weights = checkpoint / "model.safetensors"
    looks = [(*look, ground) for look in product(COLORS, SHAPES) for ground in COLORS if ground != look[0]]
    card = _CARD.format(
        layers=len(kinds),
        full=kinds.count("full_attention"),
        sliding=kinds.count("sliding_attention"),
        window=text["sliding_window"],
        hidden=text["hidden_size"],
        dense=text["intermediate_size"],
        experts=text["num_experts"],
        expert=text["moe_intermediate_size"],
        chosen=text["top_k_experts"],
        heads=text["num_attention_heads"],
        head_dim=text["head_dim"],
        global_head_dim=text["global_head_dim"],
        vocabulary=text["vocab_size"],
        canvas=CANVAS,
        parameters=_parameters(weights) / 1e6,
        megabytes=weights.stat().st_size / 1e6,
        examples="\n".join(f"    {asked:31}{found}" for asked, found in zip(EXAMPLES, captions, strict=True)),
        held_out=sum(held_out(*look) for look in looks),
        combinations=len(looks),
        prompts=scores[0]["prompts"],
        rows="\n".join(map(_row, scores)),
        machine=_machine(scores[0]),
        steps=sum(plan.steps for plan in plans),
        batch=plans[0].batch,
        parts=_PARTS.format(len(plans)) if len(plans) > 1 else "",
        canvases=CANVASES,
        noise=_noise(plans),
    )
    (checkpoint / "README.md").write_text(card, encoding="utf-8")


def _noise(plans: Sequence[TextPlan]) -> str:
    """What parts of the training do otherwise."""
    count, last = sum(plan.likely > 0 for plan in plans), plans[-1]
    noise = _NOISE.format(parts="part" if count == 1 else f"{count} parts", share=last.likely) if count else ""
    return noise + (_VAGUE.format(few=last.few, vague=last.vague) if last.few else "")


def _parameters(file: Path) -> int:
    count = 0
    with safe_open(file, "numpy") as weights:
        for name in weights.keys():  # noqa: SIM118  (not a dictionary)
            size = 1
            for side in weights.get_slice(name).get_shape():
                size *= side
            count += size
    return count


def _machine(line: dict[str, str]) -> str:
    return ", ".join([line["cpu"], f"transformers {line['transformers']}", f"torch {line['torch']}", line["date"]])


def _row(line: dict[str, str]) -> str:
    shares = [f"{100 * float(line[name]):.1f} %" for name in ("grammar", "kept", "articles", "apart")]
    spread = f"{float(line['spread']):.3f}" if line["spread"] else ""
    steps = f"{float(line['steps']):.1f}"
    return f"| {' | '.join([line['kind'], line['writer'], *shares, spread, steps])} |"
