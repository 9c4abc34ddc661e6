"""The quality table: its arithmetic, its pictures on the embedded model, and that an interrupted run can go on."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.measure import COLUMNS
from benchmarks.pictures import Quality
from benchmarks.quality import __main__ as command
from benchmarks.quality import cases, draws, plot, runs, scores
from benchmarks.quality.cases import Case, Prompt
from benchmarks.quality.scores import Sample, Scorer
from max_zimage import FirstBlockCache, TaylorSeer
from max_zimage.embedded import PATH as EMBEDDED
from tests.references.diffusers_runs import Pair
from tests.references.scenes import render

CASE = Case.of(12, 4.0, 128, 128).quick()


def sample(variant: str, prompt: str = "a", **values: object) -> Sample:
    given: dict[str, object] = {"seconds": 2.0, "skipped": 0.0, "psnr_db": float("inf"), "ssim": 1.0}
    given |= {"lpips": None, "clip_score": None, "right": (True, True, True), **values}
    return Sample(case="12 steps", variant=variant, sizes="8x8", prompt=prompt, seed=1, **given)  # type: ignore[arg-type]


# 8: Turbo. Defaults are in the grid wherever they leave out anything.
@pytest.mark.parametrize(("steps", "warmup", "settings"), [(50, 9, 20), (20, 4, 21), (8, 1, 20)])
def test_a_grid_has_the_defaults_and_nothing_that_skips_nothing(steps: int, warmup: int, settings: int) -> None:
    caches = cases.grid(steps)
    assert len(caches) == len(set(caches)) == settings
    assert FirstBlockCache() in caches
    assert (TaylorSeer() in caches) == (steps > 10)
    assert TaylorSeer(cache_interval=2, warmup_steps=warmup, max_order=2) in caches
    assert not any(cache.covers(steps) for cache in caches)


def test_prompts_are_spread_and_always_the_same(tmp_path: Path) -> None:
    prompts = cases.scene_prompts(64)
    assert prompts[:2] == cases.scene_prompts(2)
    assert prompts[0] == Prompt(text="a red circle on an orange background", seed=0, scene=("red", "circle", "orange"))
    assert len({prompt.scene for prompt in prompts}) == 64
    for part, kinds in enumerate((12, 10, 12)):
        counts = np.unique([prompt.scene[part] for prompt in prompts if prompt.scene], return_counts=True)[1]
        assert len(counts) == kinds
        assert counts.max() - counts.min() <= 2
    (tmp_path / "prompts.txt").write_text("one\n\n two \n")
    assert cases.prompts_of_file(tmp_path / "prompts.txt") == [Prompt(text="one", seed=0), Prompt(text="two", seed=1)]


def test_a_scene_is_checked_part_by_part() -> None:
    prompt = Prompt(text="a red star on a blue background", seed=0, scene=("red", "star", "blue"))
    assert prompt.shown_by(render([("red", "star", (0.5, 0.5), 0.26)], "blue")) == (True, True, True)
    assert prompt.shown_by(render([("green", "star", (0.5, 0.5), 0.26)], "blue")) == (False, True, True)
    assert prompt.shown_by(render([("red", "circle", (0.5, 0.5), 0.26)], "white")) == (True, False, False)


def test_samples_become_rows() -> None:
    cached = [
        sample("taylorseer", "a", seconds=1.0, skipped=0.5, psnr_db=30.0, ssim=0.8, right=(True, False, True)),
        sample("taylorseer", "b", seconds=3.0, skipped=0.7, psnr_db=40.0, ssim=0.9, lpips=0.25, clip_score=20.0),
        sample("taylorseer", "c", seconds=1.0, skipped=0.6),
    ]
    uncached, row = scores.rows([sample(draws.UNCACHED), *cached], "float32")
    assert (uncached.reference, uncached.psnr_db, uncached.quality.identical) == (True, float("inf"), 1.0)
    assert (row.reference, row.psnr_db, row.timing and row.timing.median) == (False, 35.0, 1.0)
    assert row.quality == Quality(
        skipped=near(0.6),
        identical=near(1 / 3),
        psnr_p5_db=30.0,
        ssim=near(0.9),
        ssim_p5=0.8,
        lpips=0.25,
        clip_score=20.0,
        color_right=1.0,
        shape_right=near(2 / 3),
        background_right=1.0,
        all_right=near(2 / 3),
    )
    (unchecked,) = scores.rows([sample(draws.UNCACHED, right=None)], "float32")
    assert (unchecked.quality.all_right, unchecked.quality.lpips) == (None, None)


def test_curves_and_defaults_of_the_plot(tmp_path: Path) -> None:
    default, other, layers = FirstBlockCache(), FirstBlockCache(threshold=0.2), FirstBlockCache(block="layers")
    drawn = [
        sample(draws.UNCACHED, seconds=4.0),
        sample(str(other), seconds=1.0, ssim=0.5),
        sample(str(default), seconds=2.0, ssim=0.75),
        sample(str(layers), seconds=8.0, ssim=0.25),
        replace(sample("cache-dit DBCacheConfig(Fn=1)"), case="12 steps, other"),  # nothing to compare it with
    ]
    rows = scores.rows(drawn, "float32")
    assert plot.curves(rows) == {
        "first_block": [(2.0, 0.75), (4.0, 0.5)],
        "first_block, block=layers": [(0.5, 0.25)],
    }
    assert plot.defaults(rows) == [(2.0, 0.75)]
    plot.draw(rows, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def near(number: float) -> Any:
    return pytest.approx(number)


def test_pictures_under_few_settings(embedded: Pair) -> None:
    competition = runs.Competition(case=CASE, groups={"": draws.engine_group(embedded.ours, CASE)}, prompts={})
    prompts = cases.scene_prompts(2)
    saved: list[Sample] = []
    runs.run(competition, prompts, Scorer(), [], saved.extend)
    uncached, same, default, more, taylor = scores.rows(saved, "float32")
    for row in (uncached, same):
        assert (row.psnr_db, row.quality.skipped, row.quality.identical) == (float("inf"), 0.0, 1.0)
        assert (row.quality.ssim, row.quality.psnr_p5_db) == (1.0, float("inf"))
    shares = [row.quality.skipped or 0 for row in (same, default, more)]
    assert shares == sorted(set(shares))
    assert 20 < (more.psnr_db or 0) < (default.psnr_db or 0) < 80
    assert 0.5 < (more.quality.ssim_p5 or 0) <= (more.quality.ssim or 0) < (default.quality.ssim or 0) < 1
    computed = TaylorSeer(cache_interval=3, warmup_steps=CASE.warmup).computes(CASE.steps)
    assert taylor.quality.skipped == pytest.approx(1 - computed.mean())

    # What is there is not drawn again; a prompt of which a part is missing is.
    again: list[Sample] = []
    runs.run(competition, prompts, Scorer(), saved[:-1], again.extend)
    assert [item.prompt for item in again] == [prompts[1].text] * 5
    assert [item.psnr_db for item in again] == [item.psnr_db for item in saved[5:]]


def test_the_caches_of_others_in_turn(embedded: Pair) -> None:
    """None leaves anything behind for the next one."""
    case, (prompt,) = Case.of(16, 4.0, 128, 128), cases.scene_prompts(1)
    group = draws.diffusers_group(embedded.theirs, case)
    drawn = {name: draw(prompt) for name, draw in group.items()}
    left_out = {name.partition("(")[0]: picture.skipped * case.steps for name, picture in drawn.items()}  # the bolder
    computed = TaylorSeer(cache_interval=5, warmup_steps=case.warmup).computes(case.steps)
    assert left_out.pop("TaylorSeerCacheConfig") == pytest.approx((~computed).sum())
    assert left_out.pop(draws.UNCACHED) == 0
    assert len(left_out) == 2
    assert min(left_out.values()) >= 1, left_out
    ours = draws.engine_group(embedded.ours, case)[draws.UNCACHED](prompt)
    again = group[draws.UNCACHED](prompt)
    np.testing.assert_array_equal(again.pixels, drawn[draws.UNCACHED].pixels)
    assert np.abs(again.pixels.astype(int) - ours.pixels).max() <= 1


def test_everyone_begins_a_round_once() -> None:
    rounds = [runs.turn(["a", "b", "c"], number) for number in (0, 1, 2, 3)]
    assert rounds == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"], ["a", "b", "c"]]


def test_samples_are_kept(tmp_path: Path) -> None:
    file, drawn = tmp_path / "samples.jsonl", [sample("a"), sample("b", psnr_db=3.5, right=None)]
    assert scores.kept(file) == []
    scores.append(file, drawn[:1])
    scores.append(file, drawn[1:])
    assert scores.kept(file) == drawn
    file.write_text(json.dumps({"case": 1}))
    with pytest.raises(ValueError, match="start without --resume"):
        scores.kept(file)


def test_the_score_of_a_clip_model(tmp_path: Path) -> None:
    """Against the cosine of what the model's two halves say, on a picture that needs no resizing."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(EMBEDDED / "tokenizer")
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    words: dict[str, Any] = {"vocab_size": len(tokenizer), "max_position_embeddings": 12}
    words |= {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    vision = {"image_size": 32, "patch_size": 8}
    torch.manual_seed(5)
    model = CLIPModel(CLIPConfig(text_config=small | words, vision_config=small | vision, projection_dim=8)).eval()
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    for part in (model, tokenizer, processor):
        part.save_pretrained(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    normal = (pixels / 255 - np.array(processor.image_mean)) / np.array(processor.image_std)
    clip, expected = scores.ClipScore(tmp_path), []
    texts = ("red", "blue", "yellow star", "circle " * 30)
    for text in texts:
        tokens = tokenizer(text, return_tensors="pt")["input_ids"][:, :12]
        with torch.no_grad():
            image = model.get_image_features(torch.tensor(normal, dtype=torch.float32).permute(2, 0, 1)[None])
            said = model.get_text_features(tokens)
        cosine = torch.nn.functional.cosine_similarity(image.pooler_output, said.pooler_output).item()
        expected.append(max(0.0, 100 * cosine))
    assert max(expected) > 1, expected
    np.testing.assert_allclose([clip(pixels, text) for text in texts], expected, atol=1e-3)
    with pytest.raises(ValueError, match="--clip must name a folder"):
        scores.ClipScore(tmp_path / "none")


def test_the_learned_distance(tmp_path: Path) -> None:
    try:
        package = import_module("lpips")
    except (ImportError, RuntimeError):
        with pytest.raises(ValueError, match="lpips does not load"):
            scores.Lpips(tmp_path / "none.pth")
        pytest.skip("lpips is not installed, or torchvision is not of torch's build")
    torch.manual_seed(0)
    model = package.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
    state = {f"features.{name.partition('.')[2]}": value for name, value in model.net.state_dict().items()}
    torch.save(state, tmp_path / "alexnet.pth")
    distance = scores.Lpips(tmp_path / "alexnet.pth")
    one, other = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    with torch.no_grad():
        tensors = [torch.tensor(each / 127.5 - 1, dtype=torch.float32).permute(2, 0, 1)[None] for each in (one, other)]
        assert distance(one, other) == pytest.approx(model(*tensors).item(), rel=1e-5)
    assert distance(one, one) == 0 < distance(one, other)
    with pytest.raises(ValueError, match="--lpips must name"):
        scores.Lpips(tmp_path / "none.pth")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--prompts", "x"], "--prompts needs --model"),
        (["--model", "x"], "--model needs --prompts FILE"),
        (["--model", "x", "--prompts", "no-such-file", "--output", "y"], "text file of one prompt a line"),
        (["--model", "x", "--prompts", "y", "--output", "z", "--peer-prompts", "2"], "for the embedded model, got 2"),
        (["--count", "0"], "--count must be 1 or more, got 0"),
        (["--clip", "no-such-folder"], "--clip must name a folder with a CLIP model, got no-such-folder"),
    ],
)
def test_bad_arguments_are_named(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert said in capsys.readouterr().err


def test_from_the_command_line_to_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint under --model with prompts of one's own, which nobody can check."""
    (tmp_path / "prompts.txt").write_text("a red star on a blue background\n")
    words = ["--model", str(EMBEDDED), "--dtype", "float32", "--prompts", str(tmp_path / "prompts.txt")]
    words += ["--steps", "6", "--guidance", "0", "--height", "96", "--width", "128", "--quick"]
    assert command.main([*words, "--output", str(tmp_path)]) == 0
    with (tmp_path / "quality.csv").open(newline="") as opened:
        lines = list(csv.DictReader(opened))
    assert tuple(lines[0]) == COLUMNS
    assert [line["sizes"] for line in lines] == ["96x128"] * 5
    assert (lines[0]["psnr_db"], lines[0]["speedup"], lines[0]["all_right"]) == ("inf", "1", "")
    assert (lines[0]["lpips"], lines[0]["clip_score"], lines[0]["case"]) == ("", "", "6 steps, guidance 0")
    told = capsys.readouterr().out
    assert "LPIPS: not measured" in told
    assert "CLIP score: not measured" in told
    assert 0 < (tmp_path / "quality.png").stat().st_size < 150_000
