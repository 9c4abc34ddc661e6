"""The embedded model's trainer: scenes, what it computes beside diffusers, and going on after an interruption."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.training import pictures, scenes
from benchmarks.training.autoencoder import new_autoencoder
from benchmarks.training.evaluation import score, shown, unseen_scenes
from benchmarks.training.flow import Latents, _inputs, _loss, noise_levels, sample
from benchmarks.training.scenes import held_out, random_scene
from benchmarks.training.tokenizer import train_tokenizer
from benchmarks.training.training import (
    Plan,
    Training,
    chance_of,
    kernels_as_matrices,
    kernels_as_they_were,
    muon,
)
from benchmarks.training.transformer import (
    Captions,
    Model,
    new_text_encoder,
    new_transformer,
    patchify,
    unpatchify,
)
from max_zimage.embedded import PATH as EMBEDDED
from tests.references.scenes import COLORS, SIZES, SceneObject, render
from tests.tolerances import TRANSFORMER_L2


def test_training_never_shows_what_is_kept_out() -> None:
    chance = np.random.default_rng(0)
    kept = [held_out(color, shape, ground) for color in COLORS for shape in ("star", "ring") for ground in COLORS]
    assert 0.05 < np.mean(kept) < 0.15
    for objects in (1, 2):
        for unseen in (True, False):
            scenes = [random_scene(chance, objects, unseen=unseen) for _ in range(50)]
            looks = [(color, shape, scene.ground) for scene in scenes for color, shape, _, _ in scene.objects]
            assert len(looks) == 50 * objects
            assert {held_out(*look) for look in looks} == {unseen}
            assert all(
                color in scene.caption and shape in scene.caption
                for scene in scenes
                for color, shape, *_ in scene.objects
            )


@pytest.mark.parametrize("objects", [1, 2])
def test_painted_scenes_are_read_back(objects: Literal[1, 2]) -> None:
    scenes = unseen_scenes(objects, 60)
    quality = score(scenes, np.stack([scene.painted(128, 128) for scene in scenes]))
    assert (quality.color_right, quality.shape_right, quality.background_right, quality.all_right) == (1, 1, 1, 1)


def test_what_is_wrong_is_seen() -> None:
    left, right = ("red", "star", (0.25, 0.5), 0.175), ("blue", "ring", (0.75, 0.5), 0.175)
    chance = np.random.default_rng(0)
    scene = replace(random_scene(chance, 2, unseen=False), objects=(left, right), ground="white")
    assert shown(scene, render([left, right], "white")) == (True, True, True, True)
    assert shown(scene, render([left, right], "yellow")) == (True, True, False, False)
    swapped = [("blue", "ring", left[2], 0.175), ("red", "star", right[2], 0.175)]
    assert shown(scene, render(swapped, "white")) == (False, False, True, False)
    mixed = [("red", "ring", left[2], 0.175), ("blue", "star", right[2], 0.175)]
    assert shown(scene, render(mixed, "white")) == (True, False, True, False)
    above = [("red", "star", (0.5, 0.25), 0.175), ("blue", "ring", (0.5, 0.75), 0.175)]
    assert not shown(scene, render(above, "white"))[3]
    assert not shown(scene, render([left], "white"))[3]
    third = ("green", "square", (0.5, 0.85), 0.12)
    assert not shown(scene, render([left, right, third], "white"))[3]


@pytest.mark.parametrize("word", list(SIZES))
def test_one_object_has_its_place_and_size(word: str) -> None:
    """As far as the caption tells them: training has pictures this much moved and scaled of the same words."""
    chance = np.random.default_rng(0)
    for color, shape in (("red", "ring"), ("gray", "crescent"), ("green", "triangle")):
        painted = (color, shape, (0.46, 0.46), SIZES[word] * 0.94)
        scene = replace(random_scene(chance, 1, unseen=False), objects=(painted,), ground="white")

        def right(x: float, radius: float, *others: SceneObject) -> tuple[bool, ...]:
            return shown(scene, render([(color, shape, (x, 0.54), radius), *others], "white"))  # noqa: B023

        assert right(0.54, SIZES[word] * 1.06) == (True, True, True, True)
        assert right(0.6, SIZES[word]) == (True, True, True, False)
        other = {"small": "", "": "large", "large": ""}[word]
        assert right(0.5, SIZES[other]) == (True, True, True, False)
        second = ("blue", "square", (0.09, 0.09), 0.05)
        assert right(0.5, SIZES[word], second) == (True, True, True, False)


def randomized(module: nn.Module) -> None:
    """Weights that a training would leave: nothing is zero, so that nothing is invisible."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=random) * 0.05)


# 64 image tokens, and 36 and 48 that are padded; captions of unequal lengths.
@pytest.mark.parametrize("grid", [(8, 8), (6, 6), (6, 8)])
@torch.no_grad()
def test_what_is_trained_is_what_diffusers_runs(grid: tuple[int, int]) -> None:
    tokenizer = train_tokenizer()
    captions = Captions.of(tokenizer, ["", "a red star above a blue ring on white"])
    text, transformer = new_text_encoder(len(tokenizer)), new_transformer()
    randomized(transformer)
    latents = torch.randn(2, 16, 2 * grid[0], 2 * grid[1], generator=torch.Generator().manual_seed(1))
    times = torch.tensor([0.1, 0.7])
    hidden = text.model(input_ids=captions.ids, attention_mask=captions.mask, output_hidden_states=True)
    features = [row[mask == 1] for row, mask in zip(hidden.hidden_states[-2], captions.mask, strict=True)]
    theirs = transformer([image[:, None] for image in latents], times, features).sample

    ours = Model(text, transformer)(patchify(latents), times, captions.ids, captions.mask, grid)
    expected = patchify(torch.stack([image[:, 0] for image in theirs]))
    assert torch.linalg.norm(ours - expected) / torch.linalg.norm(expected) < TRANSFORMER_L2
    assert torch.equal(unpatchify(patchify(latents), grid), latents)


class Straight(nn.Module):
    """Knows the velocity from one noise to one picture."""

    def __init__(self, clean: Tensor, noise: Tensor) -> None:
        super().__init__()
        self.velocity = nn.Parameter(patchify(clean - noise))

    def forward(self, patches: Tensor, times: Tensor, ids: Tensor, mask: Tensor, grid: tuple[int, int]) -> Tensor:
        return self.velocity


def test_a_model_without_loss_samples_its_picture() -> None:
    clean, noise = torch.randn(2, 3, 16, 12, 16, generator=torch.Generator().manual_seed(0))
    captions = Captions.of(train_tokenizer(), ["a red star"] * 3)
    model, rows, random = Straight(clean, noise), torch.arange(3), torch.Generator().manual_seed(4)
    torch.testing.assert_close(sample(model, captions, noise, 5), clean)
    # A step draws its noise first: that of this generator is what makes the same model one without loss.
    drawn = torch.randn(clean.shape, generator=torch.Generator().manual_seed(4))
    plan = Plan(steps=1, batch=3, rate=1.0, warmup=1)
    latents = Latents(values=clean, captions=captions)
    (loss,) = _loss(Straight(clean, drawn), plan, *_inputs(latents, rows, rows, random))
    assert loss < 1e-10


def test_captions_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"captions must have at most 32 tokens, got \d+; shorten them"):
        Captions.of(train_tokenizer(), ["", "a red star " * 20])


class Net(nn.Module):
    """One of everything that is trained: a convolution, a matrix for each optimizer, vectors."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, 4, 3)
        self.matrix = nn.Linear(4, 4)
        self.embedder = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.embedder(self.matrix(self.convolution(x).mean(dim=(2, 3))))


def trained(folder: Path, plan: Plan, steps: int) -> dict[str, Tensor]:
    """The averages after some of a plan's steps, in a process that begins anew."""
    net = Net()
    kernels_as_matrices(net)
    optimizers = muon(net, plan, ("embedder",))
    assert [len(optimizer.param_groups[0]["params"]) for optimizer in optimizers] == [2, 4]
    training = Training(folder, net, optimizers, plan)

    def inputs_of(step: int) -> tuple[Tensor]:
        if step == steps < plan.steps:
            raise KeyboardInterrupt
        if step == 60 and steps < plan.steps:
            training._save()
        return (torch.randn(8, 3, 5, 5, generator=chance_of(1, step)[1]),)

    def loss_of(x: Tensor) -> tuple[Tensor]:
        return (((net(x) - x.mean(dim=(2, 3))[:, :2]) ** 2).mean(),)

    if steps < plan.steps:
        with pytest.raises(KeyboardInterrupt):
            training.run(inputs_of, loss_of)
    else:
        training.run(inputs_of, loss_of)
    kernels_as_they_were(training.averaged)
    return training.averaged.state_dict()


def test_an_interrupted_training_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    plan = Plan(steps=160, batch=8, rate=1e-2, warmup=5)
    at_once = trained(tmp_path / "a", plan, 160)
    trained(tmp_path / "b", plan, 110)  # saved at 60, a row of the curve at 100, stopped at 110
    resumed = trained(tmp_path / "b", plan, 160)
    assert at_once.keys() == Net().state_dict().keys()
    for name, values in at_once.items():
        torch.testing.assert_close(resumed[name], values, rtol=0, atol=0)
        assert not torch.equal(values, Net().state_dict()[name])
    for folder in ("a", "b"):
        curve = [row.split(",") for row in (tmp_path / folder / "curve.csv").read_text().splitlines()]
        assert curve[0] == ["seconds", "step", "loss", "rate"]
        assert [row[1] for row in curve[1:]] == ["50", "100", "150", "160"]
    with pytest.raises(ValueError, match=r"holds a training of .*'steps': 160.*name another folder"):
        trained(tmp_path / "b", replace(plan, steps=170), 170)


def test_noise_levels_are_those_of_few_steps() -> None:
    sigma = noise_levels(10_000, torch.Generator().manual_seed(0))
    assert sigma.min() >= 0
    assert sigma.max() <= 1
    assert sigma.median() == pytest.approx(0.75, abs=0.02)  # u of a half, shifted by 3
    assert (sigma < 0.1).float().mean() > 0.005


def test_the_embedded_model_is_one_that_the_trainer_makes() -> None:
    """Same parts and shapes: what is shipped can be made again."""
    made = {
        "transformer": new_transformer(),
        "text_encoder": new_text_encoder(len(train_tokenizer())),
        "vae": new_autoencoder(),
    }
    for name, module in made.items():
        (file,) = (EMBEDDED / name).glob("*.safetensors")
        shapes = {key: tuple(value.shape) for key, value in load_file(file).items()}
        wanted = {key: tuple(value.shape) for key, value in module.state_dict().items() if key != "lm_head.weight"}
        assert shapes == wanted


def test_other_scenes_are_another_training(monkeypatch: pytest.MonkeyPatch) -> None:
    same = pictures.fingerprint()
    assert pictures.fingerprint() == same
    monkeypatch.setattr(scenes, "PAIR_RADIUS", scenes.PAIR_RADIUS * 1.02)
    assert pictures.fingerprint() != same
