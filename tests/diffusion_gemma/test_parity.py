"""The graphs beside transformers, in float32: keys and values, logits, and what is told of them.

Random weights route some token almost evenly to two experts, and rounding then decides which: cases where transformers
itself was so near a tie are left out, and there must be few of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from max_zimage import embedded
from max_zimage.diffusion_gemma.model_graphs import GemmaCache
from max_zimage.diffusion_gemma.steps import CanvasLook, Ids
from max_zimage.graphs.diffusion_gemma.stack import kinds
from tests.references.diffusion_gemmas import Both, opened
from tests.tolerances import DIFFUSION_GEMMA_CACHE_L2, DIFFUSION_GEMMA_LOGITS_L2

TIE = 1e-5
"""Of the scores of two experts, which are of size 1: float32 behind six layers decides nothing below."""
SEEDS = 8
"""Tried for each case until transformers is near no tie."""


class Reference:
    """What transformers says of the same ids: rows are padded on the left."""

    def __init__(self, both: Both, prompts: list[Ids]) -> None:
        self.model, self.routing = both.theirs.model, both.routing
        self.head = both.theirs
        longest = max(map(len, prompts))
        ids = np.stack([np.pad(each, (longest - len(each), 0)) for each in prompts])
        self.mask = np.stack([np.arange(longest) >= longest - len(each) for each in prompts]).astype(np.int64)
        settings: Any = both.theirs.config.text_config
        self.cache = DynamicCache(config=settings)
        self.read(ids, first=True)

    @torch.no_grad()
    def read(self, ids: Ids, *, first: bool = False) -> None:
        if not first:
            self.mask = np.concatenate([self.mask, np.ones_like(ids)], axis=1)
        self.model.encoder(
            input_ids=torch.tensor(ids), attention_mask=torch.tensor(self.mask), past_key_values=self.cache
        )

    @torch.no_grad()
    def look(
        self, canvas: Ids, logits: NDArray[np.float32] | None, seen: NDArray[np.bool_], temperature: float
    ) -> NDArray[np.float32]:
        found = self.head(
            past_key_values=self.cache,
            decoder_input_ids=torch.tensor(canvas),
            decoder_attention_mask=torch.tensor(np.concatenate([self.mask, np.ones_like(canvas)], axis=1)),
            self_conditioning_logits=None if logits is None else torch.tensor(logits),
            self_conditioning_mask=None if logits is None else torch.tensor(seen),
        )
        z: NDArray[np.float32] = (found.logits / temperature).numpy()
        return z


def l2(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def padded(prompts: list[Ids]) -> tuple[Ids, Ids]:
    """Rows as the engine takes them: what stands behind a row is noise that it must not read."""
    longest = max(map(len, prompts))
    ids = np.stack([np.pad(each, (0, longest - len(each)), constant_values=1) for each in prompts])
    return ids, np.array([len(each) for each in prompts])


def check_cache(both: Both, ours: GemmaCache, theirs: Reference) -> None:
    """Keys and values of every layer; sliding layers of transformers keep the last window - 1."""
    spec = both.ours.spec
    tensors = dict(zip(kinds(spec), ours.tensors, strict=True))
    for index, (kind, place) in enumerate(zip(spec.layer_types, spec.places(), strict=True)):
        layer: Any = theirs.cache.layers[index]
        for number, wanted in enumerate((layer.keys, layer.values)):
            kept = wanted.shape[2]
            assert kept == (min(ours.length, spec.sliding_window - 1) if kind == "sliding_attention" else ours.length)
            found = tensors[kind].to_numpy()[place, number].swapaxes(1, 2)[:, :, ours.length - kept :]
            real = np.broadcast_to(theirs.mask[:, None, ours.length - kept :, None] > 0, found.shape)
            assert l2(found[real], wanted.numpy()[real]) <= DIFFUSION_GEMMA_CACHE_L2, f"layer {index}"


def check_look(look: CanvasLook, z: NDArray[np.float32], top: int) -> None:
    """Everything that is told of a canvas, from transformers' processed logits in float64."""
    assert l2(look.logits.to_numpy(), z) <= DIFFUSION_GEMMA_LOGITS_L2
    exact = z.astype(np.float64)
    chances = np.exp(exact - exact.max(-1, keepdims=True))
    chances /= chances.sum(-1, keepdims=True)
    entropy = -(chances * np.log(np.maximum(chances, 1e-300))).sum(-1)
    np.testing.assert_allclose(look.entropy, entropy, rtol=1e-3, atol=1e-4)
    ordered = np.sort(chances, axis=-1)[..., ::-1]
    clear = ordered[..., 0] - ordered[..., 1] > 1e-4
    assert clear.any()
    np.testing.assert_array_equal(look.argmax[clear], z.argmax(-1)[clear])
    assert look.top_probabilities.shape == (*z.shape[:2], top)
    np.testing.assert_allclose(look.top_probabilities, ordered[..., :top], rtol=1e-3, atol=1e-6)
    named = np.take_along_axis(chances, look.top_tokens, axis=-1)
    np.testing.assert_allclose(look.top_probabilities, named, rtol=1e-3, atol=1e-6)
    assert all(len(set(each)) == top for each in look.top_tokens.reshape(-1, top).tolist())


def run(both: Both, lengths: list[int], seed: int) -> Iterator[str]:
    """Read, look without and with the last look, commit, look again; stops where transformers was near a tie."""
    spec, rng = both.ours.spec, np.random.default_rng(seed)
    prompts = [rng.integers(2, spec.vocab_size, length) for length in lengths]
    rows = len(prompts)
    seen = np.arange(rows) % 2 == 0  # every other row has self-conditioning
    every = np.ones(rows, bool)
    cache, theirs = both.ours.encode(*padded(prompts)), Reference(both, prompts)
    if both.routing.smallest() < TIE:
        return
    check_cache(both, cache, theirs)
    yield "prompt"
    for block in ("first", "second"):
        canvas = rng.integers(0, spec.vocab_size, (rows, spec.canvas_length))
        logits: Any = None
        for temperature, mask in ((0.8, every), (0.7, every), (0.6, seen)):
            given = None if logits is None else logits.to_numpy()
            look = both.ours.denoise(canvas, logits, mask, temperature, cache)
            z = theirs.look(canvas, given, mask, temperature)
            if both.routing.smallest() < TIE:
                return
            check_look(look, z, spec.top)
            logits, canvas = look.logits, look.argmax
            yield f"{block} {temperature}"
        if block == "first":
            cache = both.ours.commit(cache, canvas)
            theirs.read(canvas)
            if both.routing.smallest() < TIE:
                return
            check_cache(both, cache, theirs)
            yield "commit"


def check_stages(both: Both, lengths: list[int]) -> None:
    stages = next((found for seed in range(SEEDS) if len(found := list(run(both, lengths, seed))) == 8), None)
    assert stages is not None, f"prompts of {lengths} tokens: near a tie with every seed"


def test_keys_values_and_logits(usual: Both) -> None:
    """Around the window and beyond it, alone and together, in two blocks; without, with and with half-hidden logits."""
    window = usual.ours.spec.sliding_window
    lengths = [[window - 1], [window], [window + 1], [3 * window], [1, window, 2 * window], [3 * window, window // 2]]
    for each in lengths:
        check_stages(usual, each)


def test_the_trained_one() -> None:
    """Its weights are no noise: norms, routers and scales as training left them."""
    both = opened(embedded.TEXT_PATH)
    window = both.ours.spec.sliding_window
    for each in ([window + 1], [1, window, 2 * window]):
        check_stages(both, each)


def test_a_row_is_what_it_is_alone(usual: Both) -> None:
    """What stands beside a row, and how long that is, is nothing to it."""
    spec, rng = usual.ours.spec, np.random.default_rng(3)
    prompts = [rng.integers(2, spec.vocab_size, length) for length in (spec.sliding_window + 3, 2)]
    canvas = rng.integers(0, spec.vocab_size, (2, spec.canvas_length))
    together = usual.ours.denoise(canvas, None, np.ones(2, bool), 1.0, usual.ours.encode(*padded(prompts)))
    for row in range(2):
        alone = usual.ours.encode(*padded(prompts[row : row + 1]))
        look = usual.ours.denoise(canvas[row : row + 1], None, np.ones(1, bool), 1.0, alone)
        assert l2(look.logits.to_numpy()[0], together.logits.to_numpy()[row]) <= DIFFUSION_GEMMA_LOGITS_L2


def test_no_logits_are_no_signal_and_not_zeros(usual: Both) -> None:
    """Zero logits would be the mean embedding; none, and hidden ones, are exact zeros."""
    spec, rng = usual.ours.spec, np.random.default_rng(4)
    cache = usual.ours.encode(rng.integers(2, spec.vocab_size, (1, 5)), np.array([5]))
    canvas, yes, no = rng.integers(0, spec.vocab_size, (1, spec.canvas_length)), np.array([True]), np.array([False])
    first = usual.ours.denoise(canvas, None, yes, 1.0, cache)
    hidden = usual.ours.denoise(canvas, first.logits, no, 1.0, cache)
    zeros = usual.ours.denoise(canvas, usual.ours.no_logits(cache), yes, 1.0, cache)
    np.testing.assert_array_equal(hidden.logits.to_numpy(), first.logits.to_numpy())
    assert l2(zeros.logits.to_numpy(), first.logits.to_numpy()) > 1e-3


def test_a_cache_is_not_changed(usual: Both) -> None:
    spec, rng = usual.ours.spec, np.random.default_rng(5)
    cache = usual.ours.encode(rng.integers(2, spec.vocab_size, (1, 6)), np.array([6]))
    before = [each.to_numpy().copy() for each in cache.tensors]
    canvas = rng.integers(0, spec.vocab_size, (1, spec.canvas_length))
    usual.ours.denoise(canvas, None, np.array([True]), 1.0, cache)
    longer = usual.ours.commit(cache, canvas)
    assert (cache.length, longer.length) == (6, 6 + spec.canvas_length)
    for old, now, more in zip(before, cache.tensors, longer.tensors, strict=True):
        np.testing.assert_array_equal(now.to_numpy(), old)
        np.testing.assert_array_equal(more.to_numpy()[:, :, :, :6], old)


@pytest.mark.slow
def test_heads_that_fill_no_vector(odd: Path) -> None:
    """No op of a CPU takes them: products of matrices attend."""
    both = opened(odd)
    window = both.ours.spec.sliding_window
    for each in ([window + 1], [1, window, 2 * window]):
        check_stages(both, each)
