"""MAX's documented classes, over real MAX configurations, and what the steps refuse."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from max.driver import CPU, Buffer, DeviceSpec
from max.dtype import DType
from max.engine import InferenceSession
from max.graph import DeviceRef
from max.graph.weights import load_weights
from max.nn.transformer import ReturnLogits
from max.pipelines.kv_cache import KVCacheConfig
from max.pipelines.lib.config import MAXModelConfig, PipelineConfig
from max.pipelines.modeling.config_enums import SupportedEncoding
from transformers import AutoConfig
from transformers.models.diffusion_gemma.configuration_diffusion_gemma import DiffusionGemmaConfig

from max_zimage.diffusion_gemma.config import DiffusionGemmaForBlockDiffusionConfig, GemmaCacheParams
from max_zimage.diffusion_gemma.model import DiffusionGemmaForBlockDiffusionModel
from max_zimage.diffusion_gemma.model_graphs import CompiledDiffusionGemma
from max_zimage.errors import CheckpointError
from tests.references.diffusion_gemmas import Both


def configured(both: Both, encoding: SupportedEncoding | None = "float32") -> PipelineConfig:
    """MAX's configuration of a checkpoint on this machine's CPU."""
    model = MAXModelConfig(
        model_path=str(both.directory),
        device_specs=[DeviceSpec.cpu()],
        weight_path=[both.directory / "model.safetensors"],
        quantization_encoding=encoding,
    )
    return PipelineConfig.model_construct(models={"main": model})


def config_of(both: Both) -> DiffusionGemmaForBlockDiffusionConfig:
    return DiffusionGemmaForBlockDiffusionConfig.initialize_from_config(
        configured(both), AutoConfig.from_pretrained(both.directory)
    )


@pytest.fixture(scope="module")
def model(usual: Both) -> DiffusionGemmaForBlockDiffusionModel:
    weights = load_weights([usual.directory / "model.safetensors"])
    session = InferenceSession(devices=[CPU()])
    return DiffusionGemmaForBlockDiffusionModel(
        configured(usual), session, [CPU()], KVCacheConfig(enable_prefix_caching=False), weights
    )


def test_names_and_defaults_are_the_documented_ones() -> None:
    fields = {each.name: each for each in dataclasses.fields(DiffusionGemmaForBlockDiffusionConfig)}
    assert all(each.kw_only for each in fields.values())
    defaults = {name: each.default for name, each in fields.items() if each.default is not dataclasses.MISSING}
    assert defaults == {
        "unquantized_dtype": DType.bfloat16,
        "video_token_index": 262144,
        "tie_word_embeddings": False,
        "canvas_length": 256,
        "boi_token_id": 255999,
        "eoi_token_id": 258882,
    }
    required = [name for name in fields if name not in defaults]
    assert required == ["devices", "dtype", "kv_params", "image_token_index", "text_config", "vision_config"]
    made = inspect.signature(DiffusionGemmaForBlockDiffusionModel).parameters
    assert [*made] == [
        "pipeline_config",
        "session",
        "devices",
        "kv_cache_config",
        "weights",
        "adapter",
        "return_logits",
    ]
    assert (made["adapter"].default, made["return_logits"].default) == (None, ReturnLogits.LAST_TOKEN)
    step = inspect.signature(DiffusionGemmaForBlockDiffusionModel.execute_decoder_step).parameters
    arguments = ["canvas_tokens", "input_row_offsets", "sc_logits", "sc_enabled", "temperature", "kv_cache_inputs"]
    assert [*step] == ["self", *arguments]


def test_a_configuration(usual: Both) -> None:
    config, spec = config_of(usual), usual.ours.spec
    assert (config.text_config, config.dtype, config.devices) == (spec, DType.float32, [DeviceRef.CPU()])
    assert (config.canvas_length, config.image_token_index, config.tie_word_embeddings) == (32, 258880, True)
    assert config.vision_config is not None
    assert config.kv_params == GemmaCacheParams.of(spec, DType.float32)
    # Five sliding layers of two heads of 32, one full layer of one head of 64; keys and values, four bytes each.
    assert config.kv_params.bytes_per_token == (5 * 2 * 2 * 32 + 2 * 64) * 4
    state = {name: each.data() for name, each in load_weights([usual.directory / "model.safetensors"]).items()}
    config.finalize(AutoConfig.from_pretrained(usual.directory), state, ReturnLogits.LAST_TOKEN)
    assert (config.unquantized_dtype, config.tie_word_embeddings) == (DType.float32, True)


def test_what_a_configuration_refuses(usual: Both, odd: Path) -> None:
    config, theirs = config_of(usual), AutoConfig.from_pretrained(usual.directory)
    with pytest.raises(ValueError, match=r"return_logits must be ReturnLogits\.LAST_TOKEN"):
        config.finalize(theirs, {}, ReturnLogits.ALL)
    with pytest.raises(CheckpointError, match="it is no DiffusionGemma; it holds nothing"):
        config.finalize(theirs, {}, ReturnLogits.LAST_TOKEN)
    with pytest.raises(ValueError, match="huggingface_config is another one"):
        config.finalize(AutoConfig.from_pretrained(odd), {}, ReturnLogits.LAST_TOKEN)
    untied = DiffusionGemmaConfig(**{**theirs.to_dict(), "tie_word_embeddings": False})
    with pytest.raises(CheckpointError, match="tie_word_embeddings must be true, got false"):
        DiffusionGemmaForBlockDiffusionConfig.initialize_from_config(configured(usual), untied)
    with pytest.raises(ValueError, match="canvas_length 31 must be that of text_config, 32"):
        dataclasses.replace(config, canvas_length=31)
    with pytest.raises(ValueError, match="one device, got 2"):
        dataclasses.replace(config, devices=[DeviceRef.CPU()] * 2)


def test_a_documented_step_is_the_step(model: DiffusionGemmaForBlockDiffusionModel, usual: Both) -> None:
    """Two rows, twice: flat buffers in MAX's order give what the steps give, to the bit."""
    spec, rng = usual.ours.spec, np.random.default_rng(6)
    ids, lengths = rng.integers(2, spec.vocab_size, (2, 9)), np.array([9, 4])
    cache = model.encode(ids, lengths)
    assert model.vision_model is None
    length, rows = spec.canvas_length, 2
    canvas = rng.integers(0, spec.vocab_size, (rows, length))
    offsets = Buffer.from_numpy(np.array([0, length, 2 * length], np.uint32))
    logits = Buffer.zeros((rows * length, spec.vocab_size), DType.float32, CPU())
    theirs = None
    for enabled in (0.0, 1.0):
        seen, warmth = (Buffer.from_numpy(np.array([each], np.float32)) for each in (enabled, 0.7))
        flat = Buffer.from_numpy(canvas.reshape(-1).copy())
        found = model.execute_decoder_step(flat, offsets, logits, seen, warmth, cache)
        wanted = usual.ours.denoise(canvas, theirs, np.ones(rows, bool), 0.7, usual.ours.encode(ids, lengths))
        told = (wanted.argmax, wanted.top_probabilities, wanted.top_tokens, wanted.entropy)
        for given, expected in zip(found, (wanted.logits.to_numpy(), *told), strict=True):
            np.testing.assert_array_equal(given.to_numpy(), expected.reshape(rows * length, *expected.shape[2:]))
        assert [each.dtype for each in found] == [DType.float32, DType.int64, DType.float32, DType.int64, DType.float32]
        logits, theirs, canvas = found[0], wanted.logits, wanted.argmax
    assert model.commit(cache, canvas).length == 9 + length


def test_what_a_documented_step_refuses(model: DiffusionGemmaForBlockDiffusionModel, usual: Both) -> None:
    spec = usual.ours.spec
    cache = model.encode(np.full((2, 3), 5), np.array([3, 3]))
    count = 2 * spec.canvas_length
    given: dict[str, Any] = {
        "canvas_tokens": np.full(count, 7),
        "input_row_offsets": np.array([0, spec.canvas_length, count], np.uint32),
        "sc_logits": np.zeros((count, spec.vocab_size), np.float32),
        "sc_enabled": np.zeros(1, np.float32),
        "temperature": np.ones(1, np.float32),
    }
    for name, value, said in (
        ("canvas_tokens", np.full(count - 1, 7), r"canvas_tokens must be \[64\], got \[63\]"),
        ("canvas_tokens", np.full(count, spec.vocab_size), "token ids must be from 0 to 511"),
        (
            "input_row_offsets",
            np.array([0, 31, 64], np.uint32),
            "must part canvases of 32 tokens for each of the 2 rows",
        ),
        ("sc_logits", np.zeros((count, 5), np.float32), r"sc_logits must be \[64, 512\], got \[64, 5\]"),
        ("sc_enabled", np.zeros(3, np.float32), r"sc_enabled must be float32 \[1\] or \[2\], got \[3\]"),
        ("temperature", np.ones(2, np.float32), r"temperature must be float32 \[1\], got \[2\]"),
    ):
        buffers = {key: Buffer.from_numpy(np.array(each)) for key, each in {**given, name: value}.items()}
        with pytest.raises(ValueError, match=said):
            model.execute_decoder_step(**buffers, kv_cache_inputs=cache)


def test_what_a_model_refuses(usual: Both) -> None:
    weights = load_weights([usual.directory / "model.safetensors"])
    session, config = InferenceSession(devices=[CPU()]), configured(usual)
    for arguments, said in (
        ({"adapter": lambda *_: {}}, "adapter must be None"),
        ({"devices": [CPU(), CPU()]}, "one device, got 2"),
        ({"kv_cache_config": KVCacheConfig()}, "enable_prefix_caching must be false"),
        ({"return_logits": ReturnLogits.ALL}, "return_logits must be"),
    ):
        given: dict[str, Any] = {
            "devices": [CPU()],
            "kv_cache_config": KVCacheConfig(enable_prefix_caching=False),
            **arguments,
        }
        with pytest.raises(ValueError, match=said):
            DiffusionGemmaForBlockDiffusionModel(config, session, weights=weights, **given)


Call = Callable[[CompiledDiffusionGemma], object]
ONE, YES = np.array([1]), np.array([True])
CANVAS = np.full((1, 32), 5)


def read(model: CompiledDiffusionGemma, length: int = 3) -> Any:
    return model.encode(np.full((1, length), 5), np.array([length]))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda model: model.encode(np.full((1, 0), 5), ONE),
            r"ids must be int64 \[rows, longest\], got int64 \[1, 0\]",
        ),
        (lambda model: model.encode(np.full(3, 5), ONE), r"ids must be int64 \[rows, longest\], got int64 \[3\]"),
        (lambda model: model.encode(np.full((1, 3), 5, np.int32), ONE), "got int32"),
        (
            lambda model: model.encode(np.full((1, 3), 5), 4 * ONE),
            r"a number from 1 to 3 for each of the 1 rows .* got \[4\]",
        ),
        (lambda model: model.encode(np.full((1, 3), 5), 0 * ONE), "a prompt has one token at least"),
        (lambda model: model.encode(np.full((2, 3), 5), ONE), "for each of the 2 rows"),
        (lambda model: model.encode(np.full((1, 3), 512), 3 * ONE), "token ids must be from 0 to 511, got 512 to 512"),
        (lambda model: model.encode(np.full((1, 3), -1), 3 * ONE), "token ids must be from 0 to 511, got -1 to -1"),
        (lambda model: read(model, 2049), "the prompt would end at position 2049, and the model has 2048"),
        (
            lambda model: model.denoise(CANVAS, None, YES, 1.0, read(model, 2017)),
            "the canvas would end at position 2049",
        ),
        (lambda model: model.commit(read(model, 2017), CANVAS), "the canvas would end at position 2049"),
        (
            lambda model: model.denoise(CANVAS[:, :31], None, YES, 1.0, read(model)),
            r"must be \[1, 32\], .* got \[1, 31\]",
        ),
        (lambda model: model.denoise(CANVAS + 512, None, YES, 1.0, read(model)), "token ids must be from 0 to 511"),
        (
            lambda model: model.denoise(CANVAS, None, YES, 0.0, read(model)),
            "temperature must be a finite number above 0",
        ),
        (
            lambda model: model.denoise(CANVAS, None, YES, 1e-50, read(model)),
            "temperature must be a finite number above 0, from 1.18e-38 to 3.4e\\+38, got 1e-50",
        ),
        (
            lambda model: model.denoise(CANVAS, None, YES, float("nan"), read(model)),
            "temperature must be a finite number",
        ),
        (
            lambda model: model.denoise(CANVAS, None, np.array([True] * 2), 1.0, read(model)),
            "sc_enabled must say yes or no",
        ),
    ],
)
def test_what_the_steps_refuse(call: Call, said: str, usual: Both) -> None:
    with pytest.raises(ValueError, match=said):
        call(usual.ours)


def test_images_are_refused(usual: Both) -> None:
    """Its own image token lies outside of the small vocabulary; here is one that does not."""
    file = dataclasses.replace(usual.ours.file, image_token_id=7)
    model = object.__new__(CompiledDiffusionGemma)
    model.file, model.spec = file, file.spec
    with pytest.raises(ValueError, match="token 7 stands for an image, and this engine reads text only"):
        model.encode(np.array([[5, 7, 5]]), np.array([3]))
