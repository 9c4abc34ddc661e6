"""What is drawn, accepted and renoised and when a canvas is done: transformers and diffusers on given numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EntropyBoundScheduler
from transformers.models.diffusion_gemma.generation_diffusion_gemma import (
    DiffusionGemmaGenerationConfig,
    DiffusionGemmaGenerationMixin,
    EntropyBoundSampler,
    EntropyBoundSamplerConfig,
    LinearTemperatureScheduleLogitsProcessor,
    StableAndConfidentStoppingCriteria,
)

from max_zimage.diffusion_gemma import sampler
from tests.references.text_steps import TOP, drawn_as_the_engine_draws

ROWS, LENGTH, VOCABULARY = 3, 16, 200


def some_logits(seed: int, spread: float = 4.0) -> torch.Tensor:
    """Float32 [rows, length, vocabulary], as sure in some places as they are unsure in others."""
    random = torch.Generator().manual_seed(seed)
    scale = spread * torch.rand(ROWS, LENGTH, 1, generator=random) ** 2
    return scale * torch.randn(ROWS, LENGTH, VOCABULARY, generator=random)


def entropy_of(logits: torch.Tensor) -> np.ndarray:
    return torch.distributions.Categorical(logits=logits).entropy().numpy()


@pytest.mark.parametrize("bound", [1e-6, 0.1, 2.0, 30.0, 1000.0])
@pytest.mark.parametrize("seed", range(4))
def test_what_is_accepted(seed: int, bound: float) -> None:
    logits = some_logits(seed, spread=9.0)
    reference: Any = EntropyBoundSampler(EntropyBoundSamplerConfig(bound), LENGTH, VOCABULARY, 1)
    current, drawn = torch.zeros(ROWS, LENGTH).long(), torch.ones(ROWS, LENGTH).long()
    wanted = reference.accept_canvas(current, drawn, logits, 1).bool().numpy()
    found = sampler.accepted(entropy_of(logits), bound)
    np.testing.assert_array_equal(found, wanted)
    assert found.any(axis=1).all()
    assert found.all() == (bound == 1000.0)


def test_the_surest_is_accepted_and_the_first_beyond_the_bound() -> None:
    entropy = np.array([[3.0, 0.25, 5.0, 0.5, 4.0]], np.float32)
    assert sampler.accepted(entropy, 0.1).tolist() == [[False, True, False, False, False]]
    assert sampler.accepted(entropy, 0.3).tolist() == [[False, True, False, True, False]]
    assert sampler.accepted(entropy, 0.75).tolist() == [[True, True, False, True, False]]


@pytest.mark.parametrize("step", [0, 3, 7])
def test_a_step_is_that_of_diffusers(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole step from given numbers: draws, acceptance and noise."""
    logits, seeds = some_logits(5, spread=9.0), [4, 5, 6]
    scheduler = EntropyBoundScheduler(entropy_bound=0.5, t_max=0.9, t_min=0.3)
    scheduler.set_timesteps(8)
    for_token, for_noise = sampler.chances(seeds, 0, 0, LENGTH)
    noise = sampler.tokens_of(for_noise, VOCABULARY)
    monkeypatch.setattr(torch, "randint", lambda **_: torch.from_numpy(noise))
    with drawn_as_the_engine_draws(seeds, VOCABULARY, LENGTH):
        sampler_class: Any = EntropyBoundSampler
        sampler_class.initialize_canvas(None, ROWS, None)  # a canvas begins
        multinomial = torch.multinomial
        monkeypatch.setattr(torch, "multinomial", lambda p, num_samples, generator: multinomial(p, num_samples))
        wanted = scheduler.step(logits, step, torch.zeros(ROWS, LENGTH).long())
    z = logits / sampler.temperature(step, 8, 0.9, 0.3)
    best = torch.softmax(z, dim=-1).topk(TOP, dim=-1)
    taken = sampler.accepted(entropy_of(z), 0.5)
    tokens = sampler.drawn(best.values.numpy(), best.indices.numpy(), for_token)
    np.testing.assert_array_equal(taken, wanted.accepted_index.numpy())
    np.testing.assert_array_equal(np.where(taken, tokens, noise), wanted.prev_sample.numpy())


@pytest.mark.parametrize("steps", [1, 5, 48])
def test_temperatures(steps: int) -> None:
    reference: Any = LinearTemperatureScheduleLogitsProcessor(0.4, 0.8, steps)
    for step in range(steps):
        wanted = 1 / float(reference(torch.zeros(1), torch.ones(1), cur_step=steps - step))
        assert sampler.temperature(step, steps, 0.8, 0.4) == pytest.approx(wanted, rel=1e-6)
    assert sampler.temperature(0, steps, 0.8, 0.4) == 0.8


@pytest.mark.parametrize("stability", [0, 1, 2, 3])
def test_when_a_canvas_is_done(stability: int) -> None:
    """Forty steps in which the likeliest tokens change now and then and certainty comes and goes."""
    chance = np.random.default_rng(stability)
    reference: Any = StableAndConfidentStoppingCriteria(stability_threshold=stability, confidence_threshold=0.5)
    settling = sampler.Settling(ROWS, LENGTH, stability, 0.5)
    argmax, seen = np.zeros((ROWS, LENGTH), np.int64), []
    for _ in range(40):
        changes = chance.random(ROWS) < 0.35
        argmax = np.where(changes[:, None], chance.integers(0, 3, (ROWS, 1)), argmax)
        logits = torch.from_numpy(chance.normal(size=(ROWS, LENGTH, 8)) * chance.uniform(2, 25, (ROWS, 1, 1)))
        wanted = reference(torch.from_numpy(argmax), logits).numpy()
        found = settling(argmax, entropy_of(logits).astype(np.float32))
        np.testing.assert_array_equal(found, wanted)
        seen.append(found)
    assert 0.1 < np.mean(seen) < 0.9


def test_draws_follow_the_probabilities() -> None:
    """Against the definition: a unit falls into the share of a token, shares in falling order."""
    probabilities = np.array([0.5, 0.3, 0.15, 0.05], np.float32)
    tokens = np.array([7, 2, 9, 4])
    units = np.array([0.0, 0.49, 0.51, 0.79, 0.81, 0.94, 0.96, np.nextafter(1, 0)])
    found = sampler.drawn(np.tile(probabilities, (1, 8, 1)), np.tile(tokens, (1, 8, 1)), units[None])
    assert found.tolist() == [[7, 7, 2, 2, 9, 9, 4, 4]]
    # What the likeliest leave out is shared out among them.
    cut = sampler.drawn(
        np.tile(probabilities[:2], (1, 3, 1)), np.tile(tokens[:2], (1, 3, 1)), np.array([[0, 0.62, 0.63]])
    )
    assert cut.tolist() == [[7, 7, 2]]


def test_a_row_has_numbers_of_its_own() -> None:
    """Alone or beside others, and in every canvas, step and purpose different ones; the same ones for ever."""
    both = sampler.chances([3, 4], 1, 2, LENGTH)
    for found, alone in zip(both, sampler.chances([4], 1, 2, LENGTH), strict=True):
        np.testing.assert_array_equal(found[1], alone[0])
    noise = sampler.first_noise([3, 4], 1, LENGTH, VOCABULARY)
    np.testing.assert_array_equal(noise[1], sampler.first_noise([4], 1, LENGTH, VOCABULARY)[0])
    others = [sampler.chances([4], *place, LENGTH) for place in ((0, 2), (1, 1), (1, 3), (2, 2))]
    drawn = [row[0] for pair in (*others, sampler.chances([4], 1, 2, LENGTH)) for row in pair]
    assert len({tuple(row) for row in drawn}) == len(drawn)
    assert sampler.first_noise([42], 0, 6, 408).tolist() == [RECORDED_NOISE]
    np.testing.assert_array_equal(sampler.chances([42], 1, 3, 2), RECORDED_CHANCES)


def test_noise_is_even() -> None:
    """Each of eight tokens within five standard deviations of an eighth of 8,000."""
    counts = np.bincount(sampler.first_noise(range(500), 0, 16, 8).ravel(), minlength=8)
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(8000 * 1 / 8 * 7 / 8)


def test_what_stands_behind_an_end() -> None:
    """As transformers finishes a canvas, for rows with several ends, one at either side, and none."""
    ids = np.array([[5, 1, 2, 1, 9], [2, 5, 5, 5, 5], [5, 5, 5, 5, 2], [5, 6, 7, 8, 9]])
    config = DiffusionGemmaGenerationConfig(eos_token_id=[1, 2], pad_token_id=0)
    reference: Any = DiffusionGemmaGenerationMixin
    wanted, ended = reference._finalize_canvas(
        torch.from_numpy(ids.copy()),
        torch.zeros(4, dtype=torch.bool),
        config,
        lambda tokens, scores, new_token_length: torch.isin(tokens, torch.tensor([1, 2])).any(dim=1),
        5,
        torch.tensor([1, 2]),
    )
    found, has_end = sampler.up_to_end(ids, [1, 2], 0)
    np.testing.assert_array_equal(found, wanted.numpy())
    np.testing.assert_array_equal(has_end, ended.numpy())


RECORDED_NOISE = [246, 245, 333, 405, 76, 59]
RECORDED_CHANCES = ([[0.9583943080068544, 0.8811435742068344]], [[0.20454797794052082, 0.3541806488712923]])
