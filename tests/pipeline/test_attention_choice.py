"""A model whose attention was chosen: what it computes, what it is called, and where it is refused."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from max.driver import CPU, Buffer

from max_zimage import ZImagePipeline, ZImageTextEncoder
from max_zimage.compile.ahead_of_time import FULL_MODEL, check_attention
from max_zimage.compile.compiler import CompiledGraph, compile_together
from max_zimage.compile.graphs import define
from max_zimage.compile.registry import entry_of, key_of, spec_of
from max_zimage.components import ZImageTransformerModel
from max_zimage.device.devices import download, upload
from max_zimage.pipeline.attention import VARIABLE
from max_zimage.pipeline.batch import Captions, caption_arguments
from max_zimage.pipeline.items import make_items
from max_zimage.pipeline.step_inputs import euler_step_inputs
from tests.references.diffusers_runs import Pair
from tests.tolerances import FEATURES_L2, TRANSFORMER_L2

LENGTHS = (20, 50)
"""Tokens of the captions: rows of 32 and of 64, of which the shorter one has padding."""


@pytest.fixture(scope="module")
def chosen(embedded: Pair) -> Mapping[str, CompiledGraph]:
    """Two graphs of the transformer with plain attention, over the weights of the others."""
    own = embedded.ours.transformer
    made = {
        name: define(
            entry_of(name),
            own.spec,
            "float32",
            own.kept_weights,
            session=own.session,
            device=own.device,
            attention="plain",
        )
        for name in ("conditioning", "denoise")
    }
    compile_together(list(made.values()))
    return made


def distance(ours: Buffer, theirs: Buffer, item: int | None = None) -> float:
    a, b = (download(each) if item is None else download(each)[item] for each in (ours, theirs))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def numbers(*shape: int, seed: int = 0) -> Buffer:
    return upload(np.random.default_rng(seed).standard_normal(shape, np.float32), CPU())


def test_graphs_with_plain_attention_compute_the_same(chosen: Mapping[str, CompiledGraph], embedded: Pair) -> None:
    own: ZImageTransformerModel = embedded.ours.transformer
    captions = Captions(tokens=tuple(np.arange(n) for n in LENGTHS), features=(), rows=(0, 1))
    inputs = numbers(2, 64, own.spec.caption_dim), *caption_arguments(own.rope_spec, captions, CPU())
    ours, theirs = chosen["conditioning"](*inputs)[0], own.conditioning(*inputs)[0]
    assert distance(ours, theirs, 1) < TRANSFORMER_L2
    assert distance(ours[:1, :32, :], theirs[:1, :32, :]) < TRANSFORMER_L2  # rows beyond are the batch's padding
    assert not np.array_equal(download(ours), download(theirs))  # it is another way
    items = make_items(own.rope_spec, 3, 7, LENGTHS, 2, CPU())
    rows, scale = own.modulation_table(np.array([0.1, 0.7], np.float32))
    row = upload(download(rows)[1], CPU()), upload(download(scale)[1], CPU())
    latents, tokens = numbers(2, 21, own.spec.patch_dim, seed=2), numbers(2, 64, own.spec.dim, seed=1)
    step = euler_step_inputs(items, tokens, latents, *row, guidance_scale=1.5, cfg_normalization=0.9, delta=-0.1)
    results = list(zip(chosen["denoise"](*step.arguments), own.model(*step.arguments), strict=True))
    for place, (mine, right) in enumerate(results):
        assert place == 1 or distance(mine, right) < TRANSFORMER_L2  # Euler has no history


def test_a_text_encoder_with_the_attention_of_max(embedded: Pair) -> None:
    """Causal, with heads that are shared."""
    alone = ZImageTextEncoder.from_pretrained(device="cpu", attention_backend="max")
    assert alone.text_encoder.attention == "max"
    ours, theirs = alone.encode("a red star").positive, embedded.ours.encode("a red star").positive
    assert np.linalg.norm(ours - theirs) < FEATURES_L2 * np.linalg.norm(theirs)
    assert not np.array_equal(ours, theirs)


def test_what_a_choice_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(**options: str) -> str:
        return ZImagePipeline.prepare(device="cpu", **options).sources.attention_backend

    assert [found(), found(attention_backend="auto"), found(attention_backend="max_zimage")] == [""] * 3
    assert [found(attention_backend=each) for each in ("max", "plain")] == ["max", "plain"]
    assert found(attention_backend="max_zimage", dtype="bfloat16") == ""
    monkeypatch.setenv(VARIABLE, "plain")
    assert [found(), found(attention_backend="auto"), found(attention_backend="max")] == ["plain", "", "max"]
    monkeypatch.setenv(VARIABLE, "sdpa")
    assert found() == ""
    with pytest.raises(ValueError, match="must be one of auto, max_zimage, max, plain, got 'fast'"):
        found(attention_backend="fast")


def test_artifacts_are_told_apart() -> None:
    """Those that are compiled ahead are those that a pipeline looks for."""
    for name in ("denoise", "conditioning", "text_encoder"):
        spec = spec_of(name, FULL_MODEL)
        assert key_of(name, FULL_MODEL) == entry_of(name).key_of(spec) == spec
        assert key_of(name, FULL_MODEL, "plain") == entry_of(name).key_of(spec, "plain") == (spec, "plain")
    assert key_of("decode", FULL_MODEL, "plain") == FULL_MODEL.vae  # which nobody chooses for


def test_what_there_is_for_a_target() -> None:
    assert check_attention("max_zimage", FULL_MODEL, "cpu", "float32") is None
    assert check_attention("max", FULL_MODEL, "cpu", "float32") == "max"
    for target in ("cuda:sm_90a", "hip:gfx942"):
        assert check_attention("max", FULL_MODEL, target, "bfloat16") is None
        assert check_attention("plain", FULL_MODEL, target, "bfloat16") == "plain"
        with pytest.raises(ValueError, match=f"auto or max or plain for {target} in bfloat16, got 'max_z"):
            check_attention("max_zimage", FULL_MODEL, target, "bfloat16")
