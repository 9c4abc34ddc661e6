"""The text model's training: what it learns from, what a step computes, what it leaves behind."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.diffusion_gemma.modeling_diffusion_gemma import DiffusionGemmaForBlockDiffusion

from benchmarks.training.scenes import held_out
from benchmarks.training.text import __main__ as command
from benchmarks.training.text import recipe
from benchmarks.training.text.card import EXAMPLES, write_card
from benchmarks.training.text.data import POOL, WIDTHS, batch_of, prompt_ids, tokenizer_of
from benchmarks.training.text.evaluation import KINDS, Kind, prompts_of, save, scored
from benchmarks.training.text.loss import CANVASES, FEW, noised
from benchmarks.training.text.model import CANVAS, new_model
from benchmarks.training.text.prompts import random_pair
from benchmarks.training.text.recipe import TextPlan
from benchmarks.training.text.wishes import Look, Wish, apart, caption_of, keeps, random_wish, read, said
from max_zimage import embedded
from tests.training.without_max import run_without_max

STAR = Wish(objects=(Look("", "red", "star"),), ground="blue")
TWO = Wish(objects=(Look("", "orange", "ring"), Look("", "blue", "cross")), relation="above", ground="gray")


def test_captions() -> None:
    assert caption_of(STAR) == "a red star on a blue background"
    assert caption_of(TWO) == "an orange ring above a blue cross on a gray background"
    assert [read(caption_of(wish)) for wish in (STAR, TWO)] == [STAR, TWO]
    assert read("an red star on an blue background") == STAR
    assert read("a red red star on a blue background") is None
    assert read("a red star on a blue background.") is None


def test_what_is_kept() -> None:
    assert keeps(STAR, said(STAR))
    assert keeps(STAR, Wish(objects=()))
    assert keeps(STAR, Wish(objects=(Look(None, None, "star"),)))
    assert not keeps(STAR, Wish(objects=(Look("large", None, "star"),)))
    assert not keeps(STAR, Wish(objects=(Look(None, None, "star"),), ground="red"))
    assert not keeps(TWO, Wish(objects=(Look(None, "orange", "ring"),)))
    assert not keeps(TWO, Wish(objects=(Look(None, "blue", "cross"), Look(None, "orange", "ring"))))
    assert not keeps(TWO, Wish(objects=TWO.objects, relation="and"))
    assert apart(TWO)
    assert not apart(Wish(objects=(Look("", "red", "star"),), ground="red"))


def test_captions_that_are_learned_from_have_no_combination_kept_out() -> None:
    chance = np.random.default_rng(0)
    pairs = [random_pair(chance) for _ in range(3000)]
    for _, wish in pairs:
        assert apart(wish)
        assert not any(held_out(str(look.color), str(look.shape), str(wish.ground)) for look in wish.objects)
        assert read(caption_of(wish)) == wish
    assert 0.02 < np.mean([prompt == "" for prompt, _ in pairs]) < 0.04
    grounds = Counter(wish.ground for _, wish in pairs)
    assert len(grounds) == 12
    assert max(grounds.values()) < 2 * min(grounds.values())
    unseen = [random_wish(chance, 2, unseen=True) for _ in range(50)]
    assert all(held_out(str(look.color), str(look.shape), str(wish.ground)) for wish in unseen for look in wish.objects)


_SAID_AS = {"gray": {"gray", "grey"}, "large": {"large", "big"}, "small": {"small", "tiny", "little"}}


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind.name != "one object, with a slip"], ids=lambda k: k.name
)
def test_prompts_ask_for_what_they_say_they_do(kind: Kind) -> None:
    """Every word that is asked for stands in the prompt, and no other colour or shape does."""
    for prompt, asked in prompts_of(kind, 150):
        assert prompt or not asked.objects  # no word asks for no number of objects
        words = [word.strip(",") for word in prompt.split()]
        wanted = [word for look in asked.objects for word in look if word] + ([asked.ground] if asked.ground else [])
        for word in wanted:
            forms = _SAID_AS.get(word, {word})
            assert any(each in forms or each in {f"{word}s", f"{word}es"} for each in words), (prompt, asked)
        colors = {each for each in words if each in {"red", "orange", "yellow", "green", "cyan", "blue", "purple"}}
        assert colors <= {*wanted}
    assert prompts_of(kind, 20) == prompts_of(kind, 20)


def test_a_batch_is_always_the_same_and_says_what_it_teaches(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path)
    prompts, lengths, clean, canvases = batch_of(tokenizer, 32, step=7)
    again = batch_of(tokenizer_of(tmp_path), 32, step=7)
    assert all(map(torch.equal, again, (prompts, lengths, clean, canvases)))
    assert clean.shape == (32, CANVAS)
    assert canvases.shape == (CANVASES, 32, CANVAS)
    assert prompts.shape[1] == next(width for width in WIDTHS if width >= lengths.max())
    for row, length, caption in zip(prompts, lengths, clean, strict=True):
        begin = prompts.shape[1] - int(length)
        assert (row[:begin] == tokenizer.pad_token_id).all()
        text = str(tokenizer.decode(row[begin:]))
        assert text.startswith("<|im_start|> ")
        assert text.endswith("<|im_end|>")
        ends = (caption == tokenizer.eos_token_id).nonzero().flatten()
        assert read(str(tokenizer.decode(caption[: ends[0]]))) is not None
        assert (caption[ends[0] :] == tokenizer.eos_token_id).all()


def test_batches_of_a_pool_have_prompts_alike_in_length(tmp_path: Path) -> None:
    """All that were drawn together, each once, of lengths that do not overlap; batches are in no order of length."""
    tokenizer = tokenizer_of(tmp_path)
    lengths = [batch_of(tokenizer, 4, step)[1] for step in range(POOL)]
    ends = sorted((int(each.min()), int(each.max())) for each in lengths)
    assert all(longest <= shortest for (_, longest), (shortest, _) in pairwise(ends))
    assert ends[0][1] < ends[-1][0]
    means = [float(each.float().mean()) for each in lengths]
    assert means not in (sorted(means), sorted(means, reverse=True))


def test_noise_takes_a_random_share_of_every_canvas() -> None:
    """Two thirds of all tokens on average, a share that differs from canvas to canvas, and any token in their place."""
    clean = torch.zeros(2000, CANVAS, dtype=torch.int64)
    replaced = (noised(clean, 1000, torch.Generator().manual_seed(1)) != 0).float()
    assert replaced.shape == (CANVASES, 2000, CANVAS)
    assert replaced.mean(dim=(1, 2)).tolist() == pytest.approx([2 / 3] * CANVASES, abs=0.02)
    # Of a share p with density 2p: the variance of the mean is that of p, 1/18, and what 16 draws add, 1/6/16.
    assert replaced.mean(dim=2).var() == pytest.approx(1 / 18 + 1 / 96, rel=0.08)


def test_likely_noise_is_words_of_captions() -> None:
    """Half of it from the same place of another caption, half from the own caption, beside any tokens."""
    rows = 200
    clean = torch.arange(rows).view(-1, 1) * CANVAS + torch.arange(CANVAS)  # a token says whose it is, and where
    most = rows * CANVAS
    canvases = noised(clean, 10 * most, torch.Generator().manual_seed(1), likely=0.5)
    other = canvases != clean
    place, row = torch.where(canvases < most, canvases % CANVAS, -1), canvases // CANVAS
    beside = other & (place == torch.arange(CANVAS))
    own = other & (row == torch.arange(rows).view(1, -1, 1))
    shares = [float(each.sum() / other.sum()) for each in (beside, own)]
    assert shares == pytest.approx([0.25, 0.25], abs=0.02)


def test_a_share_of_the_canvases_has_little_noise() -> None:
    """As much as `FEW` says: none of them is replaced as a whole."""
    clean = torch.zeros(2000, CANVAS, dtype=torch.int64)
    replaced = (noised(clean, 1000, torch.Generator().manual_seed(1), few=1.0) != 0).float()
    assert replaced.mean(dim=(1, 2)).tolist() == pytest.approx([FEW * 2 / 3] * CANVASES, abs=0.02)
    half = (noised(clean, 1000, torch.Generator().manual_seed(1), few=0.5) != 0).float()
    assert half.mean(dim=(1, 2)).tolist() == pytest.approx([(1 + FEW) / 3] * CANVASES, abs=0.02)


def test_vague_prompts_name_shapes_alone_or_nothing() -> None:
    chance = np.random.default_rng(0)
    for prompt, wish in [random_pair(chance, vague=1.0) for _ in range(200)]:
        assert apart(wish)
        assert [word for word in prompt.replace(",", "").split() if word != "and"] in (
            [],
            [look.shape for look in wish.objects],
        )
    empty = np.mean([random_pair(chance, vague=0.5)[0] == "" for _ in range(3000)])
    assert 0.25 < empty < 0.29  # half of the half, and three of a hundred of the rest


def test_a_short_training_leaves_a_checkpoint_that_transformers_reads(tmp_path: Path) -> None:
    plans = (
        TextPlan(steps=2, batch=4, rate=1e-3, warmup=1),
        TextPlan(steps=1, batch=3, rate=1e-3, warmup=1, likely=0.5, few=0.5, vague=0.5),
    )
    checkpoint = recipe.train(tmp_path, plans)
    before = (checkpoint / "model.safetensors").read_bytes()
    assert recipe.train(tmp_path, plans) == checkpoint  # nothing is left to do
    assert (checkpoint / "model.safetensors").read_bytes() == before
    assert sum(path.stat().st_size for path in checkpoint.iterdir()) < recipe.LARGEST_BYTES
    made: Any = DiffusionGemmaForBlockDiffusion.from_pretrained(checkpoint, dtype=torch.float32)
    assert made.generation_config.max_denoising_steps == recipe.GENERATION["max_denoising_steps"]
    fresh = new_model(made.config).state_dict()
    moved = [
        name for name, value in made.state_dict().items() if not torch.equal(value, fresh[name].bfloat16().float())
    ]
    assert any("experts" in name for name in moved)
    assert any("self_conditioning" in name for name in moved)
    assert not any("vision" in name for name in moved)


def test_scores_and_card(tmp_path: Path) -> None:
    """A writer that knows a third of the answers."""
    kind = KINDS[0]
    known = dict(prompts_of(kind, 6))

    def write(prompts: Sequence[str], seed: int) -> list[tuple[str, int]]:
        asked = [known[prompt] for prompt in prompts]
        chance = np.random.default_rng(0)
        right = [next(w for w in iter(lambda: random_wish(chance, 1), None) if keeps(w, each)) for each in asked]
        texts = [caption_of(wish) for wish in right]
        return [(texts[0], 4), (texts[1], 4), *((text.replace("background", "ground"), 1) for text in texts[2:])]

    score = scored(kind, "somebody", write, 6)
    assert (score.grammar, score.kept, score.articles, score.apart) == (1 / 3, 1 / 3, 1 / 3, 1 / 3)
    assert (score.steps, score.spread) == (2.0, None)
    save(tmp_path / "scores.csv", [score])
    with (tmp_path / "scores.csv").open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert (row["kind"], row["kept"], row["prompts"]) == (kind.name, "0.3333", "6")
    checkpoint = recipe.train(tmp_path / "work", [TextPlan(steps=1, batch=1, rate=1e-3, warmup=1)])
    write_card(checkpoint, tmp_path / "scores.csv", recipe.PLANS, ["a", "b", "c", "d"])
    card = (checkpoint / "README.md").read_text()
    assert f"| {kind.name} | somebody | 33.3 % | 33.3 % | 33.3 % | 33.3 % |  | 2.0 |" in card
    assert f"    {EXAMPLES[0]}" in card
    assert f"{sum(plan.steps for plan in recipe.PLANS):,} steps of {recipe.PLANS[0].batch} prompts" in card


def test_the_shipped_model_keeps_what_is_said(tmp_path: Path) -> None:
    """Forty prompts for one object and for two, also of what it never saw: its card says 99.8 % of five hundred."""
    from benchmarks.training.text.evaluation import with_transformers

    write = with_transformers(embedded.TEXT_PATH)
    for kind in KINDS[:4]:
        score = scored(kind, "transformers", write, 40)
        assert score.grammar == 1
        assert score.kept >= 0.97
        assert score.apart >= 0.85
    tokenizer = tokenizer_of(tmp_path)
    theirs = tokenizer_of(embedded.TEXT_PATH)
    assert prompt_ids(tokenizer, "red star") == prompt_ids(theirs, "red star")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "x", "--share", "0"], "--share must be above 0 and at most 1, got 0"),
        (["train", "x", "--threads", "0"], "--threads must be at least 1, got 0"),
        (["evaluate", "x", "--count", "0"], "--count must be at least 1, got 0"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert message in capsys.readouterr().err


def test_compiling_needs_a_compiler(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    assert command.main(["train", str(tmp_path), "--share", "0.001"]) == 2
    assert "needs a C++ compiler, there is no c++, g++ or clang++; use --eager" in capsys.readouterr().err


def test_a_folder_without_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["evaluate", str(tmp_path)]) == 2
    assert "has no config.json" in capsys.readouterr().err


def test_training_and_scoring_need_no_max(tmp_path: Path) -> None:
    arguments = ["evaluate", str(embedded.TEXT_PATH), "--count", "1", "--results", str(tmp_path / "scores.csv")]
    refused = run_without_max("benchmarks.training.text", *arguments)
    assert refused.returncode == 2
    assert "the engine needs MAX, which is not installed; ask for --writers transformers" in refused.stderr
    found = run_without_max("benchmarks.training.text", *arguments, "--writers", "transformers")
    assert found.returncode == 0, found.stderr
    with (tmp_path / "scores.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["kind"] for row in rows] == [kind.name for kind in KINDS]
    assert {row["writer"] for row in rows} == {"transformers"}
