"""Prompts of one call under adapters of their own: each the picture that it is alone, with them in the weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file

from max_zimage import ZImagePipeline
from max_zimage.checkpoint.adapters import factors
from max_zimage.enhancer.base import Enhancer
from max_zimage.errors import AdapterError, RequestError
from tests.recording import RecordProperty
from tests.references.diffusers_runs import Pair, relative_l2
from tests.references.loras import BLOCKS, EVERYWHERE, TEXT, write_adapter, write_wide
from tests.tolerances import MIXED_ADAPTERS_L2

CALL: dict[str, Any] = {"num_inference_steps": 2, "height": 64, "width": 96, "output_type": "latent"}
PROMPTS = ["a red star", "a blue ring on a green ground", "a red star"]
Latents = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A few modules, others with more than a panel of ranks in the original's naming, and some that do not do."""
    folder = tmp_path_factory.mktemp("mixed")
    return {
        "one": write_adapter(folder / "one.safetensors", BLOCKS).path,
        "wide": write_wide(folder / "wide.safetensors"),
        "everywhere": write_adapter(folder / "everywhere.safetensors", EVERYWHERE).path,
        "text": write_adapter(folder / "text.safetensors", BLOCKS[:1], TEXT).path,
    }


@pytest.fixture
def ours(embedded: Pair) -> Iterator[ZImagePipeline]:
    yield embedded.ours
    embedded.ours.set_loras()


class NeverAsked(Enhancer):
    """What is wrong with a call is said before anybody writes."""

    name = "nobody"

    def write(self, prompt: str, seed: int) -> str:
        raise AssertionError(prompt)


def draw(pipeline: ZImagePipeline, prompt: Any, **given: Any) -> Latents:
    return np.array(pipeline(prompt, **CALL | given))


@pytest.mark.parametrize(
    "more",
    [{"guidance_scale": 0.0}, {"guidance_scale": 3.0, "negative_prompt": "dark", "num_images_per_prompt": 2}],
    ids=["plain", "guided, two each"],
)
def test_each_is_the_picture_that_it_is_alone(
    more: dict[str, Any], ours: ZImagePipeline, files: dict[str, Path], record_property: RecordProperty
) -> None:
    sets: list[list[Any]] = [[(files["one"], 0.5)], [files["wide"], (files["one"], -1.0)], []]
    together, each = draw(ours, PROMPTS, seed=3, loras=sets, **more), more.get("num_images_per_prompt", 1)
    assert ours.adapters.loras == ()
    plain = draw(ours, PROMPTS, seed=3, **more)
    for index, (prompt, loras) in enumerate(zip(PROMPTS, sets, strict=True)):
        alone = draw(ours, prompt, seed=3 + index * each, loras=loras, **more)
        rows = slice(index * each, (index + 1) * each)
        error = relative_l2(together[rows], alone)
        record_property("mixed_adapters_l2", error)
        assert error <= MIXED_ADAPTERS_L2
        assert (relative_l2(plain[rows], alone) > 0.02) == bool(loras)


def test_an_interval_of_guidance_and_skipped_layers(ours: ZImagePipeline, files: dict[str, Path]) -> None:
    """Evaluations have unequal numbers of branch rows."""
    more: dict[str, Any] = {"guidance_scale": 2.0, "guidance_interval": (0.0, 0.5), "slg_scale": 1.0, "slg_layers": [2]}
    more |= {"slg_start": 0.0, "slg_stop": 1.0}
    sets: list[list[Any]] = [[files["one"]], [files["wide"]], []]
    together = draw(ours, PROMPTS, seed=3, loras=sets, **more)
    for index, (prompt, loras) in enumerate(zip(PROMPTS, sets, strict=True)):
        alone = draw(ours, prompt, seed=3 + index, loras=loras, **more)
        assert relative_l2(together[index : index + 1], alone) <= MIXED_ADAPTERS_L2


def test_pictures_remember_their_own(ours: ZImagePipeline, files: dict[str, Path]) -> None:
    sets: list[list[Any]] = [[(files["one"], 0.5)], []]
    pictures: Any = ours(PROMPTS[:2], seed=3, loras=sets, **CALL | {"output_type": "pil"})
    kept = [[(each["name"], each["scale"]) for each in known.loras] for known in pictures.parameters]
    assert kept == [[("one.safetensors", 0.5)], []]
    assert [known.seed for known in pictures.parameters] == [3, 4]


def test_what_cannot_be_mixed_is_said(ours: ZImagePipeline, files: dict[str, Path], tmp_path: Path) -> None:
    def refusal(loras: Any, **more: Any) -> str:
        with pytest.raises(RequestError) as caught:
            draw(ours, PROMPTS[:2], seed=3, loras=loras, **more)
        return str(caught.value)

    start = "loras: prompts cannot be drawn together under adapters of their own: "
    one: list[Any] = [[files["one"]], []]
    text = f"{start}text.safetensors changes the text encoder; draw them one by one"
    assert refusal([[files["text"]], []]) == text
    assert "everywhere.safetensors changes " in refusal([[], [files["everywhere"]]])
    assert "which is no matrix of the noise refiner or the main layers" in refusal([[], [files["everywhere"]]])
    for kind in ("dora", "high"):
        tensors = load_file(files["one"])
        for name in [name for name in tensors if "lora_B" in name]:
            rows = len(tensors[name])
            if kind == "dora":
                tensors[name.replace("lora_B.weight", "lora_magnitude_vector")] = torch.ones(rows)
            else:
                other = name.replace("lora_B", "lora_A")
                tensors[name], tensors[other] = torch.ones(rows, 97), torch.ones(97, tensors[other].shape[1])
        save_file(tensors, tmp_path / f"{kind}.safetensors")
    assert "by more than a low-rank product" in refusal([[tmp_path / "dora.safetensors"], []])
    said = "high.safetensors changes layers.0.attention.to_k, whose rank comes to 97, where 96 is the most"
    assert said in refusal([[tmp_path / "high.safetensors"], []])
    assert refusal(one, step_cache="first_block").startswith(f"{start}there is a step cache")
    assert refusal(one, nag_scale=2.0, guidance_scale=0.0, negative_prompt="x").startswith(f"{start}normalized")
    assert refusal(one, progressive=0.5).startswith(f"{start}passes are asked for")
    assert "has a list for each of 3 prompts, and there are 2; give as many" in refusal([[], [], []])
    both = refusal([["gone.safetensors"], ["nowhere.safetensors"]])
    assert "loras[0][0]: " in both
    assert "loras[1][0]: " in both
    with pytest.raises(RequestError, match="for each of 3 prompts"):
        ours(PROMPTS[:2], loras=[[files["one"]], [], []], enhance=True, enhancer=NeverAsked(), **CALL)


def test_sets_that_change_nothing_or_are_the_same(ours: ZImagePipeline, files: dict[str, Path]) -> None:
    """The bits are those of the plain step, of pictures without any beside others, too."""
    alike = draw(ours, PROMPTS[:2], seed=3, loras=[[files["one"]], [files["one"]]])
    np.testing.assert_array_equal(alike, draw(ours, PROMPTS[:2], seed=3, loras=[files["one"]]))
    plain, one = draw(ours, PROMPTS[:2], seed=3), files["one"]
    for sets in ([[(one, 0.0)], []], [[one, (one, -1.0)], [(files["wide"], 0.0)]]):
        np.testing.assert_array_equal(draw(ours, PROMPTS[:2], seed=3, loras=sets), plain)
    mixed = draw(ours, PROMPTS[:2], seed=3, loras=[[one], [(one, 0.0)]])
    np.testing.assert_array_equal(mixed[1], plain[1])
    assert relative_l2(mixed[:1], plain[:1]) > 0.02


def test_a_pair_is_no_list_of_adapters(ours: ZImagePipeline, files: dict[str, Path]) -> None:
    expected = draw(ours, PROMPTS[0], seed=3, loras=[(files["one"], 0.5)])
    for scale in (0.5, np.float32(0.5)):
        np.testing.assert_array_equal(draw(ours, PROMPTS[0], seed=3, loras=[[str(files["one"]), scale]]), expected)
    for other in (None, True):
        with pytest.raises(RequestError, match="scale must be a finite number"):
            draw(ours, PROMPTS[0], seed=3, loras=[[str(files["one"]), other]])


def test_a_file_that_is_gone(ours: ZImagePipeline, files: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "gone.safetensors"
    file.write_bytes(files["one"].read_bytes())
    sets = ours.loras_by_prompt([[file], []])
    assert sets is not None
    file.unlink()
    with pytest.raises(AdapterError, match=r"gone\.safetensors cannot be read"):
        draw(ours, PROMPTS[:2], seed=3, loras=[list(each) for each in sets])
    draw(ours, PROMPTS[:2], seed=3)


def test_what_does_not_fit_is_said(
    ours: ZImagePipeline, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """7 blocks, 1 set, ranks of 32: (256 + 768 + 256 + 256 + 256 + 1364 + 682 + 256) numbers of 4 bytes, twice."""
    monkeypatch.setattr(factors, "available_memory", lambda: 7 * 32 * 4094 * 8 - 1)
    with pytest.raises(AdapterError, match="draw fewer sets of adapters together"):
        draw(ours, PROMPTS[:2], seed=3, loras=[[files["one"]], []])
    monkeypatch.setattr(factors, "available_memory", lambda: 7 * 32 * 4094 * 8)
    draw(ours, PROMPTS[:2], seed=3, loras=[[files["one"]], []])
