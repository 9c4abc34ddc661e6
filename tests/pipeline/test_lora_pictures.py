"""Pictures with adapters: those of a checkpoint that has them in its weights, to the bit; without them as before."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from max.driver import Buffer
from max.engine import Model

from max_zimage import ZImagePipeline
from max_zimage.compile import modules
from max_zimage.errors import AdapterError, CheckpointError, RequestError
from max_zimage.pipeline import bound_adapters
from max_zimage.pipeline.bound_adapters import NotApplied
from max_zimage.request.loras import digest_of
from tests.references.diffusers_runs import Pair
from tests.references.loras import EVERYWHERE, LAST, RANK, STYLE, TEXT, Adapter, write_adapter, write_checkpoint

Pixels = npt.NDArray[np.uint8]
CALL: dict[str, Any] = {"seed": 3, "num_inference_steps": 2, "height": 64, "width": 96, "output_type": "latent"}


def draw(pipeline: ZImagePipeline, **given: Any) -> npt.NDArray[np.float32]:
    """Latents, which tell more than pictures."""
    return np.array(pipeline("a red star", **CALL | given))


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> tuple[Adapter, Adapter]:
    """One of few modules, and one of all graphs and of the text encoder, which has a tensor with it in common."""
    folder = tmp_path_factory.mktemp("loras")
    style = write_adapter(folder / "style.safetensors", STYLE)
    return style, write_adapter(folder / "all.safetensors", (*EVERYWHERE, STYLE[0]), TEXT, seed=2)


@pytest.fixture
def ours(embedded: Pair) -> Iterator[ZImagePipeline]:
    """The pipeline that tests share, given back with the weights of its checkpoint."""
    yield embedded.ours
    embedded.ours.set_loras()


@pytest.mark.parametrize("scales", [(0.5, None), (None, 1.0), (-2.0, 0.5)])
def test_the_picture_of_the_checkpoint_that_has_them(
    scales: tuple[float | None, float | None],
    adapters: tuple[Adapter, Adapter],
    ours: ZImagePipeline,
    tmp_path: Path,
) -> None:
    """And without them the picture that was there before, to the bit. Nothing is compiled."""
    given = [(each, scale) for each, scale in zip(adapters, scales, strict=True) if scale is not None]
    loras = [(str(each.path), scale) for each, scale in given]
    base = draw(ours)
    compiled = modules.counts["misses"]
    drawn, guided = draw(ours, loras=loras), draw(ours, loras=loras, guidance_scale=3.0, negative_prompt="blue")
    assert modules.counts["misses"] == compiled
    assert np.abs(drawn - base).max() > 0.05
    np.testing.assert_array_equal(draw(ours), base)
    np.testing.assert_array_equal(draw(ours, loras=[]), base)
    other = ZImagePipeline.from_pretrained(write_checkpoint(tmp_path / "other", *given), dtype="float32")
    np.testing.assert_array_equal(drawn, draw(other))
    np.testing.assert_array_equal(guided, draw(other, guidance_scale=3.0, negative_prompt="blue"))


def test_the_last_layer_of_the_text_encoder(ours: ZImagePipeline, tmp_path: Path) -> None:
    """Nothing that is loaded for the usual features changes; what is read for others does."""
    adapter = write_adapter(tmp_path / "last.safetensors", text_encoder=LAST)
    base, usual = draw(ours, hidden_layer=-1), draw(ours)
    loras = [(adapter.path, 2.0)]
    np.testing.assert_array_equal(draw(ours, loras=loras), usual)
    drawn = draw(ours, loras=loras, hidden_layer=-1)
    assert np.abs(drawn - base).max() > 0.01
    np.testing.assert_array_equal(draw(ours, hidden_layer=-1), base)
    other = ZImagePipeline.from_pretrained(write_checkpoint(tmp_path / "other", (adapter, 2.0)), dtype="float32")
    np.testing.assert_array_equal(drawn, draw(other, hidden_layer=-1))


def test_sums(adapters: tuple[Adapter, Adapter], ours: ZImagePipeline) -> None:
    """Nothing at scale 0 or once each way; the same file twice; any order."""
    style, other = (str(each.path) for each in adapters)
    base = draw(ours)
    for none in ([(style, 0.0)], [(style, 1.0), (style, -1)]):
        np.testing.assert_array_equal(draw(ours, loras=none), base)
    twice = draw(ours, loras=[(style, 0.5), (style, 0.25)])
    np.testing.assert_array_equal(draw(ours, loras=[(style, 0.75)]), twice)
    both = draw(ours, loras=[style, other])
    np.testing.assert_array_equal(draw(ours, loras=[other, style]), both)
    assert np.abs(both - draw(ours, loras=[other])).max() > 0.01


def test_a_folder_of_pefts(adapters: tuple[Adapter, Adapter], ours: ZImagePipeline, tmp_path: Path) -> None:
    """Is known by its configuration too, whichever of its names is given."""
    style = adapters[0].path
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK}))
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(style.read_bytes())
    expected = draw(ours, loras=[(style, 1.0)])
    for given in (tmp_path, file):
        np.testing.assert_array_equal(draw(ours, loras=[(given, 0.5)]), expected)
    ours.load_lora_weights(tmp_path)
    assert ours.sources.defaults.loras[0].digest == digest_of(tmp_path) != digest_of(style)


@pytest.mark.parametrize(
    "more",
    [
        {"step_cache": "first_block:threshold=0.1", "num_inference_steps": 4},
        {"step_cache": "taylorseer:cache_interval=2,warmup_steps=2", "num_inference_steps": 5},
        {"nag_scale": 5.0, "guidance_scale": 0.0, "negative_prompt": "blue"},
        {"hidden_layer": -3},
    ],
)
def test_graphs_that_come_later_follow(
    more: dict[str, Any], adapters: tuple[Adapter, Adapter], ours: ZImagePipeline
) -> None:
    """Asked for first under adapters, then without, and under them again."""
    loras = [str(each.path) for each in adapters]
    first, plain = draw(ours, loras=loras, **more), draw(ours, **more)
    assert np.abs(first - plain).max() > 0.05
    np.testing.assert_array_equal(draw(ours, loras=loras, **more), first)
    np.testing.assert_array_equal(draw(ours, **more), plain)


def test_a_call_inside_a_callback_leaves_the_outer_one_its_adapters(
    adapters: tuple[Adapter, Adapter], ours: ZImagePipeline
) -> None:
    """And so does one that sets others, for the calls that follow."""
    loras = [str(adapters[0].path)]
    expected, base, other = draw(ours, loras=loras), draw(ours), draw(ours, loras=[adapters[1].path])
    inner = []

    def callback(pipeline: ZImagePipeline, *_: Any) -> dict[str, Any]:
        inner.append(draw(pipeline))
        pipeline.set_loras([adapters[1].path])
        return {}

    np.testing.assert_array_equal(draw(ours, loras=loras, callback_on_step_end=callback), expected)
    for each, wanted in zip(inner, (base, other), strict=True):
        np.testing.assert_array_equal(each, wanted)
    np.testing.assert_array_equal(draw(ours), other)


class TestWhatFails:
    """The request is told, and the next one gets its picture."""

    def test_a_file_that_changes_or_goes(
        self, adapters: tuple[Adapter, Adapter], ours: ZImagePipeline, tmp_path: Path
    ) -> None:
        base, path = draw(ours), tmp_path / "here.safetensors"
        path.write_bytes(adapters[0].path.read_bytes())
        ours.set_loras([path])
        assert np.abs(draw(ours) - base).max() > 0.05
        draw(ours, loras=[])
        write_adapter(path, STYLE[:1], seed=9)
        with pytest.raises(NotApplied, match=r"adapters here\.safetensors: .*here\.safetensors has changed since"):
            draw(ours)
        path.unlink()
        with pytest.raises(NotApplied, match=r"here\.safetensors cannot be read: No such file"):
            draw(ours)
        np.testing.assert_array_equal(draw(ours, loras=[]), base)

    def test_while_weights_are_read(
        self, adapters: tuple[Adapter, Adapter], ours: ZImagePipeline, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The transformer has been bound by then, and is bound back."""
        base = draw(ours)
        with monkeypatch.context() as patch:
            patch.setattr(ours.text_encoder, "load_weights", lambda *_: 1 / 0)
            with pytest.raises(NotApplied, match=r"adapters all\.safetensors: division by zero"):
                draw(ours, loras=[adapters[1].path])
        np.testing.assert_array_equal(draw(ours), base)

    @pytest.mark.parametrize("fails", [0, 1])
    def test_while_graphs_are_bound(
        self, fails: int, adapters: tuple[Adapter, Adapter], ours: ZImagePipeline, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The transformer's, or the text encoder's when the transformer's have been."""
        base, calls, init = draw(ours), itertools.count(), modules.CompiledModule._init

        def failing(module: modules.CompiledModule, weights: Mapping[str, Buffer]) -> dict[str, Model]:
            if next(calls) == fails:
                raise RuntimeError("the device is full")
            return init(module, weights)

        with monkeypatch.context() as patch:
            patch.setattr(modules.CompiledModule, "_init", failing)
            with pytest.raises(NotApplied, match=r"adapters all\.safetensors: the device is full"):
                draw(ours, loras=[adapters[1].path])
        np.testing.assert_array_equal(draw(ours), base)

    def test_memory(
        self, adapters: tuple[Adapter, Adapter], ours: ZImagePipeline, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Said before a number is read; of what changes alone."""
        base = draw(ours)
        dim = ours.transformer.spec.dim
        with monkeypatch.context() as patch:
            needed = 4 * (3 * dim * dim + dim * dim + dim * ours.transformer.spec.ffn_dim)
            patch.setattr(bound_adapters, "available_memory", lambda: needed - 1)
            with pytest.raises(NotApplied, match=r"other weights need .* beside those that are there"):
                draw(ours, loras=[adapters[0].path])
            np.testing.assert_array_equal(draw(ours), base)
            patch.setattr(bound_adapters, "available_memory", lambda: needed)
            draw(ours, loras=[adapters[0].path])
        np.testing.assert_array_equal(draw(ours), base)

    def test_a_model_of_another_shape(self, ours: ZImagePipeline) -> None:
        checkpoint = ours.transformer.plan().files[0]
        with pytest.raises(CheckpointError, match="is no LoRA"):
            ours.set_loras([checkpoint])
        with pytest.raises(CheckpointError, match="is no LoRA"):
            ZImagePipeline.prepare(loras=[checkpoint])
        with pytest.raises(RequestError, match=r"loras\[0\]: nothing\.safetensors is no file"):
            ZImagePipeline.prepare(loras=["nothing.safetensors"])


class TestNames:
    """As diffusers has them."""

    def test_defaults_of_calls(self, adapters: tuple[Adapter, Adapter], ours: ZImagePipeline) -> None:
        style, other = (each.path for each in adapters)
        base, wanted = draw(ours), [draw(ours, loras=[(each, 0.5)]) for each in (style, other)]
        ours.load_lora_weights(style.parent, weight_name=style.name, adapter_name="style")
        assert ours.get_active_adapters() == ["style"]
        np.testing.assert_array_equal(draw(ours), draw(ours, loras=[style]))
        ours.load_lora_weights(other)
        assert ours.get_active_adapters() == ["default_0"]
        assert ours.get_list_adapters() == {"transformer": ["style", "default_0"], "text_encoder": ["default_0"]}
        ours.set_adapters("style", 0.5)
        np.testing.assert_array_equal(draw(ours), wanted[0])
        ours.set_adapters(["style", "default_0"], [0.0, 0.5])
        np.testing.assert_array_equal(draw(ours), wanted[1])
        np.testing.assert_array_equal(draw(ours, loras=[]), base)
        ours.disable_lora()
        assert ours.get_active_adapters() == []
        np.testing.assert_array_equal(draw(ours), base)
        ours.enable_lora()
        np.testing.assert_array_equal(draw(ours), wanted[1])
        ours.delete_adapters("default_0")
        assert ours.get_list_adapters() == {"transformer": ["style"]}
        np.testing.assert_array_equal(draw(ours), base)
        ours.unload_lora_weights()
        assert ours.get_list_adapters() == {}

    def test_what_is_refused(self, adapters: tuple[Adapter, Adapter], ours: ZImagePipeline) -> None:
        style = adapters[0].path
        ours.load_lora_weights(style, "style")
        with pytest.raises(ValueError, match="adapter_name 'style' is in use"):
            ours.load_lora_weights(style, "style")
        with pytest.raises(ValueError, match="no adapter is loaded as 'other'; there are 'style'"):
            ours.set_adapters(["style", "other"])
        with pytest.raises(ValueError, match="no adapter is loaded as 'x'"):
            ours.delete_adapters("x")
        with pytest.raises(ValueError, match="must be one, or one for each of 1 names, got 2"):
            ours.set_adapters("style", [1.0, 2.0])
        with pytest.raises(RequestError, match=r"loras\[0\]\.scale must be 0, or from"):
            ours.set_adapters("style", float("nan"))
        with pytest.raises(TypeError, match="an adapter is given as a file, got dict"):
            ours.load_lora_weights({})  # type: ignore[arg-type]
        with pytest.raises(
            ValueError, match=r"holds all\.safetensors, style\.safetensors; name the adapter with weight_name"
        ):
            ours.load_lora_weights(style.parent)
        with pytest.raises(AdapterError):
            ours.load_lora_weights(ours.transformer.plan().files[0])
        assert ours.get_active_adapters() == ["style"]
        ours.set_loras([style, (style, 0.5)])
        assert ours.get_active_adapters() == ["style", "style_1"]


def test_a_pipeline_that_begins_with_one(adapters: tuple[Adapter, Adapter], ours: ZImagePipeline) -> None:
    begun = ZImagePipeline.from_pretrained(loras=[(adapters[1].path, 0.5)])
    assert begun.get_active_adapters() == ["all"]
    np.testing.assert_array_equal(draw(begun), draw(ours, loras=[(adapters[1].path, 0.5)]))
    np.testing.assert_array_equal(draw(begun, loras=[]), draw(ours))
