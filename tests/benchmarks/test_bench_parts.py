"""Resolutions and the waterfall: the fit, the notes, and the switched-off graphs against the engine's numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from max.dtype import DType
from max.graph import DeviceRef, StaticDim

from benchmarks import block, end_to_end, loading, resolutions, waterfall
from benchmarks.drawing import EAGER, OURS, PLAIN, Scene, diffusers_draw, load_diffusers, our_draw, our_pipelines
from benchmarks.measure import Timing, max_abs, speedup
from benchmarks.resolutions import FULL, Fit
from max_zimage import ZImagePipeline
from max_zimage.graphs.layers import build
from max_zimage.graphs.model.blocks import ModulatedBlock
from tests.benchmarks.test_bench import row

TOKENS = [320, 1088, 2368, 4160]


@pytest.mark.parametrize("terms", [(0.1, 2e-3, 3e-7), (0.0, 1e-3, 0.0), (0.0, 0.0, 1e-6), (0.5, 0.0, 1e-7)])
def test_a_fit_finds_the_terms_it_was_made_from(terms: tuple[float, float, float]) -> None:
    seconds = [sum(term * n**power for power, term in enumerate(terms)) for n in TOKENS]
    fit = Fit.of(TOKENS, seconds)
    assert (fit.constant, fit.linear, fit.quadratic) == pytest.approx(terms, rel=1e-6, abs=1e-12)
    assert fit.seconds(1000) == pytest.approx(sum(term * 1000**power for power, term in enumerate(terms)))
    assert sum(fit.shares(1000)) == pytest.approx(1)
    assert fit.shares(1000)[2] == pytest.approx(terms[2] * 1000**2 / fit.seconds(1000))


def test_a_fit_has_no_negative_terms() -> None:
    # Falls below a straight line: least squares alone would make the quadratic term negative.
    fit = Fit.of(TOKENS, [n**0.9 for n in TOKENS])
    assert fit.quadratic == 0
    assert fit.constant > 0
    assert fit.linear > 0
    relative = [fit.seconds(n) / n**0.9 for n in TOKENS]
    assert max(relative) < 1.1
    assert min(relative) > 0.9
    with pytest.raises(ValueError, match=r"three numbers of tokens, got \[1, 2\]"):
        Fit.of([1, 2, 2], [1.0, 2.0, 2.0])


def test_sizes_of_the_resolutions() -> None:
    shapes = {side: FULL.at(side) for side in FULL.calls}
    assert [shape.tokens for shape in shapes.values()] == TOKENS
    # 3840 by 3840 four times and 3840 by 10240 three times, a multiplication and an addition each.
    assert shapes[256].product_gflop == pytest.approx(2 * 320 * (4 * 3840**2 + 3 * 3840 * 10240) / 1e9)
    assert shapes[1024].attention_gflop == pytest.approx(4 * 4160**2 * 3840 / 1e9)


def test_rows_say_how_their_time_divides() -> None:
    shapes = {str(side): FULL.at(side) for side in FULL.calls}
    measured = [
        resolutions.replace(row(variant, [factor * 1e-3 * shape.tokens]), case=case)
        for case, shape in shapes.items()
        for variant, factor in (("diffusers", 1.0), ("ours", 0.5))
    ]
    noted = resolutions.with_fits(measured, shapes)
    assert [item.timing for item in noted] == [item.timing for item in measured]
    assert noted[1].note.startswith("fit 0.16 s: constant 0.0%, linear 100.0%, quadratic 0.0%")
    counted = shapes["1024"].attention_gflop / shapes["1024"].gflop
    assert noted[-1].note.endswith(f"of the operations linear {1 - counted:.1%}, quadratic {counted:.1%}")


def test_a_block_is_given_what_the_engines_takes() -> None:
    """Traced, not compiled: sides that do not fit are found here."""
    shape, cpu = block.QUICK, DeviceRef.CPU()
    types = block.input_types(shape, "float32")
    build(lambda: ModulatedBlock(shape), DType.float32, cpu).trace(*types, name="block")
    given = block.engine_inputs(shape, block.random_block(shape), block.random_inputs(shape), "float32")
    for buffer, wanted in zip(given, types, strict=True):
        assert buffer.dtype == wanted.dtype
        sides = [int(side) if isinstance(side, StaticDim) else None for side in wanted.shape]
        assert [have if want is None else want for have, want in zip(buffer.shape, sides, strict=True)] == [
            *buffer.shape
        ]


@pytest.mark.slow
def test_a_small_block_over_sizes_agrees_with_the_reference() -> None:
    measured = resolutions.rows(resolutions.QUICK, 1, {})
    assert [item.sizes.split()[-2] for item in measured[::2]] == ["96", "128", "320", "640"]
    errors = [item.relative_l2 for item in measured if item.variant == "ours"]
    assert len(errors) == 4
    assert all(error is not None and error < 1e-5 for error in errors)


def test_a_switch_is_compared_with_the_row_before_and_a_lossy_one_with_the_last_lossless() -> None:
    seconds = {"a": 4.0, "b": 2.0, "c": 1.0, "cache": 0.5, "other cache": 0.25}
    timings = {name: Timing.of([value]) for name, value in seconds.items()}
    assert waterfall.step_notes(timings, ["cache", "other cache"]) == {
        "a": "lossless",
        "b": "lossless, 2.00x the row before",
        "c": "lossless, 2.00x the row before",
        "cache": "lossy, 2.00x the row without",
        "other cache": "lossy, 4.00x the row without",
    }


def test_the_waterfall_runs_with_what_the_engine_compiles() -> None:
    measured = waterfall.rows(waterfall.QUICKEST, 1)
    by_name = {item.variant: item for item in measured}
    cache = "+ taylorseer:cache_interval=2,warmup_steps=2"
    assert list(by_name) == [EAGER, waterfall.LAST, cache]
    assert by_name[waterfall.LAST].note.startswith("lossless, ")
    assert by_name[cache].note.startswith("lossy, ")
    lossless, lossy = by_name[waterfall.LAST].max_abs, by_name[cache].max_abs
    assert lossless is not None
    assert lossless <= 1
    assert lossy is not None
    assert lossy > 1
    assert speedup(by_name[EAGER], measured) == 1


@pytest.mark.slow
def test_every_variant_draws_the_engines_picture() -> None:
    pipelines, theirs = our_pipelines(more=True), load_diffusers()
    draws, _ = waterfall.variant_draws(pipelines[PLAIN], theirs.transformer, waterfall.VARIANTS)
    draws[waterfall.INSIDE] = our_draw(pipelines[PLAIN])
    for scene in (Scene(side=96, steps=3, guidance=2.0), Scene(side=128, steps=2, guidance=0.0)):
        engine = our_draw(pipelines[OURS])(scene)
        assert max_abs(engine, diffusers_draw(theirs)(scene)) <= 1
        for name, draw in draws.items():
            assert max_abs(draw(scene), engine) <= 1, name


def test_the_weights_of_variants_are_the_reference_s() -> None:
    pipeline, theirs = ZImagePipeline.from_pretrained(device="cpu", dtype="float32"), load_diffusers()
    named, state = waterfall.weights(pipeline, theirs.transformer), theirs.transformer.state_dict()
    name = "layers.0.attention.to_"
    parts = torch.cat([state[f"{name}{part}.weight"] for part in "qkv"]).numpy()
    assert np.array_equal(named[f"transformer.{name}qkv.weight"].to_numpy(), parts)
    up = "context_refiner.0.feed_forward.w3.weight"
    assert np.array_equal(named[f"tabled.conditioning.{up}"].to_numpy(), state[up].numpy())


def test_a_process_is_asked_for_its_last_words() -> None:
    def said(code: str, seconds: float = 60) -> str | None:
        return end_to_end.last_words([end_to_end.sys.executable, "-c", code], seconds)

    assert said("pass") is None
    assert said("raise ValueError('no main model')") == "ValueError: no main model"
    assert said("raise SystemExit(3)") == "ended with status 3"
    assert said("import time; time.sleep(60)", 0.5) == "not done after 0.5 s"


def test_loading_keeps_to_its_bound() -> None:
    rows = loading.rows("small", 4, 1)
    assert [row.variant for row in rows][-1] == "float32, packed for this CPU"
    for each in rows:
        assert each.case == "0.02 GB in bfloat16, 4 layers"
        assert "EXCEEDED" not in each.note, f"{each.peak_mib:.1f} MiB, {each.note}"
        assert each.peak_mib is not None
        assert each.peak_mib > 4
