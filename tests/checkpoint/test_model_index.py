"""`model_index.json`: the pipelines that hold the same parts are taken, parts of another class are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from max.pipelines import PIPELINE_REGISTRY, PipelineArgs
from max.pipelines.lib.config import PipelineConfig
from max.pipelines.modeling.types import PipelineTask

from max_zimage import ZImagePipeline
from max_zimage.checkpoint.model_index import PIPELINE_CLASSES, read_index
from max_zimage.cli.main import main
from max_zimage.errors import CheckpointError
from max_zimage.serving.context_tokenizer import ZImageTokenizer
from tests.references.checkpoints import changed, copied

INDEX = "model_index.json"


@pytest.mark.parametrize("name", PIPELINE_CLASSES)
def test_pipelines_of_the_same_parts(tmp_path: Path, name: str) -> None:
    model, usual = changed(copied(tmp_path / "model"), INDEX, _class_name=name), ZImagePipeline.prepare(device="cpu")
    found = ZImagePipeline.prepare(model, device="cpu")
    assert (found.sources.specs, found.sources.defaults) == (usual.sources.specs, usual.sources.defaults)
    assert main(["info", "--model", str(model), "--device", "cpu", "--json"]) == 0


@pytest.mark.parametrize("name", PIPELINE_CLASSES)
def test_max_serve_finds_them_too(tmp_path: Path, name: str) -> None:
    model = changed(copied(tmp_path / "model"), INDEX, _class_name=name)
    flags: dict[str, Any] = {"device_specs": "cpu", "custom_architectures": ["max_zimage"]}
    config = PipelineConfig.from_args(PipelineArgs.from_flat_kwargs(model_path=str(model), **flags))
    task = PipelineTask.PIXEL_GENERATION
    found = PIPELINE_REGISTRY.retrieve_architecture(config.models.main_architecture_name, task=task)
    assert found is not None
    assert found.pipeline_model is ZImagePipeline
    tokenizer = PIPELINE_REGISTRY.retrieve_factory(config, task).tokenizer
    assert isinstance(tokenizer, ZImageTokenizer)
    assert tokenizer.defaults.num_inference_steps == 8
    assert (tokenizer.limits.default_tokens, tokenizer.limits.max_tokens) == (512, 1504)


@pytest.mark.parametrize(
    "name", ["ZImageOmniPipeline", "ZImageControlNetPipeline", "FluxPipeline", ["pipeline", "ZImagePipeline"], 3, None]
)
def test_other_pipelines(tmp_path: Path, name: Any) -> None:
    model = changed(copied(tmp_path / "model"), INDEX, _class_name=name)
    with pytest.raises(CheckpointError) as caught:
        ZImagePipeline.prepare(model, device="cpu")
    assert str(caught.value).startswith(f"{model / INDEX} is of no model that is supported: _class_name is ")
    assert "ZImagePipeline, ZImageImg2ImgPipeline, ZImageInpaintPipeline; give another model" in str(caught.value)


@pytest.mark.parametrize(
    ("part", "given", "says"),
    [
        ("scheduler", ["diffusers", "UniPCMultistepScheduler"], 'names as scheduler ["diffusers", "UniPCMultistep'),
        ("scheduler", ["my_code", "FlowMatchEulerDiscreteScheduler"], 'implemented is ["diffusers", "FlowMatchEuler'),
        ("scheduler", "FlowMatchEulerDiscreteScheduler", 'implemented is ["diffusers", "FlowMatchEuler'),
        ("text_encoder", ["transformers", "T5EncoderModel"], '["transformers", "Qwen3Model"] or ["transformers", '),
        ("tokenizer", ["transformers", "CLIPTokenizer"], 'names as tokenizer ["transformers", "CLIPTokenizer"]'),
        ("transformer", ["diffusers", "FluxTransformer2DModel"], 'is ["diffusers", "ZImageTransformer2DModel"]'),
        ("vae", ["diffusers", "AutoencoderTiny"], 'implemented is ["diffusers", "AutoencoderKL"]'),
        ("vae", ["diffusers", "AutoencoderKL", {}], 'names as vae ["diffusers", "AutoencoderKL", {}]'),
        ("vae", [None, None], "names no vae; it must name"),
        ("vae", None, "names no vae; it must name"),
        ("controlnet", ["diffusers", "ZImageControlNetModel"], "names a part controlnet, "),
    ],
)
def test_parts_of_another_class(tmp_path: Path, part: str, given: Any, says: str) -> None:
    model = changed(copied(tmp_path / "model"), INDEX, **{part: given})
    with pytest.raises(CheckpointError) as caught:
        ZImagePipeline.prepare(model, device="cpu")
    assert str(caught.value).startswith(f"{model / INDEX} names ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_published_checkpoints_name(tmp_path: Path) -> None:
    parts = {"text_encoder": ["transformers", "Qwen3Model"], "tokenizer": ["transformers", "Qwen2Tokenizer"]}
    more = {"feature_extractor": [None, None], "is_distilled": True}
    model = changed(copied(tmp_path / "model"), INDEX, **parts, **more)
    assert read_index(model)["tokenizer"] == ["transformers", "Qwen2Tokenizer"]
    assert ZImagePipeline.prepare(model, device="cpu").sources.defaults.num_inference_steps == 8
