"""Weights in every format, number by number against what diffusers and transformers hold; what is refused, and how."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ZImagePipeline
from diffusers.loaders.single_file_utils import (
    convert_ldm_vae_checkpoint,
    convert_z_image_transformer_checkpoint_to_diffusers,
)
from max.driver import CPU, Buffer
from max.dtype import DType
from max.experimental.nn import Module
from max.experimental.tensor import Tensor
from max.graph import DeviceRef, TensorType
from max.graph.weights import load_weights

from max_zimage.checkpoint.config import ModelSpecs, model_specs
from max_zimage.checkpoint.expand import ParameterTable, text_encoder_names, transformer_names, vae_names
from max_zimage.checkpoint.formats import open_source
from max_zimage.checkpoint.load import load
from max_zimage.checkpoint.locate import CONFIG_FILES, find_component_files, paths_of, read_config
from max_zimage.checkpoint.plan import LoadPlan, ParameterRecipe, plan
from max_zimage.device.dtypes import DTYPES, ModelDtype, bfloat16_bits
from max_zimage.errors import CheckpointError
from max_zimage.graphs.kernel_library import uses_cpu_kernels, without_kernels
from max_zimage.graphs.layers import build
from tests.references.engine_weights import StateDict, engine_text_encoder, engine_transformer, engine_vae
from tests.references.tiny import TinySpec, original_transformer, original_vae, save_single, write_tiny

LAYERS_USED = 2  # of the tiny text encoder's 3


@dataclass(frozen=True)
class Tiny:
    """A checkpoint on disk, the modules it was written from, and the names it must have."""

    directory: Path
    pipeline: ZImagePipeline
    specs: ModelSpecs

    @property
    def names(self) -> dict[str, ParameterTable]:
        return {
            "text_encoder": text_encoder_names(self.specs.text_encoder, LAYERS_USED),
            "transformer": transformer_names(self.specs.transformer),
            "vae": vae_names(self.specs.vae),
        }

    def state(self, component: str) -> StateDict:
        return dict(getattr(self.pipeline, component).state_dict())

    def plan(self, component: str, *files: Path) -> LoadPlan:
        return plan(self.names[component], open_source(files or find_component_files(self.directory, component)))


def _tiny(directory: Path, spec: TinySpec) -> Tiny:
    pipeline = write_tiny(directory, spec)
    configs = {component: read_config(directory, component) for component in CONFIG_FILES}
    return Tiny(directory, pipeline, model_specs(**configs))


@pytest.fixture(scope="module")
def float32_tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return _tiny(tmp_path_factory.mktemp("float32"), TinySpec(head_dim=64, refiner_layers=2))


@pytest.fixture(scope="module")
def bfloat16_tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Other widths, and every component in several shards."""
    spec = TinySpec(head_dim=128, refiner_layers=1, dtype=torch.bfloat16, seed=1, shard_size="200KB")
    return _tiny(tmp_path_factory.mktemp("bfloat16"), spec)


@pytest.fixture(params=["float32_tiny", "bfloat16_tiny"])
def tiny(request: pytest.FixtureRequest) -> Tiny:
    return request.getfixturevalue(request.param)


def _numbers(buffer: Buffer) -> torch.Tensor:
    """A buffer as torch sees it, bit for bit."""
    bits = buffer.view(DType.uint16 if buffer.dtype == DType.bfloat16 else DType.float32, buffer.shape).to_numpy()
    numbers = torch.from_numpy(bits.copy())
    return numbers.view(torch.bfloat16) if bits.dtype == np.uint16 else numbers


def _check(loaded: dict[str, Buffer], expected: StateDict, dtype: str) -> None:
    assert loaded.keys() == expected.keys()
    for name, tensor in expected.items():
        assert str(loaded[name].dtype) == f"DType.{dtype}", name
        assert torch.equal(_numbers(loaded[name]), tensor.to(getattr(torch, dtype))), name


def _engine_transformer(tiny: Tiny) -> StateDict:
    spec = tiny.specs.transformer
    return engine_transformer(tiny.state("transformer"), spec.num_layers, spec.num_refiner_layers)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
class TestFormats:
    def test_text_encoder(self, tiny: Tiny, dtype: ModelDtype, tmp_path: Path) -> None:
        state = tiny.state("text_encoder")
        expected = engine_text_encoder(state, LAYERS_USED)
        found = tiny.plan("text_encoder")
        assert found.format == "transformers names behind 'model.'"
        assert set(found.dropped) == {"model.norm.weight"} | {n for n in state if n.startswith("model.layers.2.")}
        _check(load(found, dtype), expected, dtype)

        # As Qwen3Model writes it, without the prefix and with a head that is not tied.
        bare = {name.removeprefix("model."): tensor.clone() for name, tensor in state.items()}
        found = tiny.plan("text_encoder", save_single(tmp_path / "bare.safetensors", bare))
        assert found.format == "transformers names"
        assert "no words are predicted" in found.dropped["lm_head.weight"]
        _check(load(found, dtype), expected, dtype)

    def test_transformer(self, tiny: Tiny, dtype: ModelDtype) -> None:
        found = tiny.plan("transformer")
        assert (found.format, found.dropped) == ("diffusers names", {})
        _check(load(found, dtype), _engine_transformer(tiny), dtype)

    @pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
    def test_transformer_single_file(self, tiny: Tiny, dtype: ModelDtype, prefix: str, tmp_path: Path) -> None:
        file = save_single(tmp_path / "any name.safetensors", original_transformer(tiny.state("transformer")), prefix)
        found = tiny.plan("transformer", file)
        assert found.format.startswith("original single-file names")
        assert set(found.dropped) == {f"{prefix}norm_final.weight"}
        _check(load(found, dtype), _engine_transformer(tiny), dtype)

    def test_vae(self, tiny: Tiny, dtype: ModelDtype) -> None:
        found = tiny.plan("vae")
        assert (found.format, found.dropped) == ("diffusers names", {})
        _check(load(found, dtype), engine_vae(tiny.state("vae")), dtype)

    @pytest.mark.parametrize("prefix", ["", "first_stage_model.", "vae."])
    def test_vae_single_file(self, tiny: Tiny, dtype: ModelDtype, prefix: str, tmp_path: Path) -> None:
        file = save_single(tmp_path / "ae.safetensors", original_vae(tiny.state("vae")), prefix)
        found = tiny.plan("vae", file)
        assert found.format.startswith("original (Flux) single-file names")
        _check(load(found, dtype), engine_vae(tiny.state("vae")), dtype)

    def test_float16(self, float32_tiny: Tiny, dtype: ModelDtype, tmp_path: Path) -> None:
        state = {name: tensor.half() for name, tensor in float32_tiny.state("vae").items()}
        file = save_single(tmp_path / "half.safetensors", state)
        _check(load(float32_tiny.plan("vae", file), dtype), engine_vae({n: t.float() for n, t in state.items()}), dtype)


def test_rewritten_checkpoints_are_what_diffusers_reads(float32_tiny: Tiny) -> None:
    """The rewriting that the tests above rest on, undone by diffusers' own converters."""
    transformer, vae = float32_tiny.state("transformer"), float32_tiny.state("vae")
    restored = convert_z_image_transformer_checkpoint_to_diffusers(original_transformer(transformer))
    assert restored.keys() == transformer.keys()
    assert all(torch.equal(restored[name], transformer[name]) for name in transformer)
    restored = convert_ldm_vae_checkpoint(original_vae(vae), float32_tiny.pipeline.vae.config)
    assert restored.keys() == vae.keys()
    assert all(torch.equal(restored[name], vae[name]) for name in vae)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("packed", [False, True])
def test_names_are_those_of_the_graphs(tiny: Tiny, dtype: ModelDtype, packed: bool) -> None:
    """Every parameter a graph declares is loaded, in its shape; see the graphs' own tests for their numbers."""
    from max_zimage.graphs.model.conditioning import CaptionConditioning, ModulationTable
    from max_zimage.graphs.model.text_encoder import TextEncoder
    from max_zimage.graphs.model.transformer import Transformer
    from max_zimage.graphs.model.vae import DecodeLatents, EncodeImage

    specs, spec = tiny.specs, tiny.specs.transformer
    graphs: dict[str, list[Callable[[], Module[..., Any]]]] = {
        "text_encoder": [lambda: TextEncoder(specs.text_encoder, LAYERS_USED)],
        "transformer": [lambda: Transformer(spec), lambda: CaptionConditioning(spec), lambda: ModulationTable(spec)],
        "vae": [lambda: EncodeImage(specs.vae), lambda: DecodeLatents(specs.vae)],
    }
    packed = packed and uses_cpu_kernels(DType[dtype], CPU())
    for component, makers in graphs.items():
        with nullcontext() if packed else without_kernels():
            modules = [build(make, DType[dtype], DeviceRef.CPU()) for make in makers]
        declared = {name: tuple(map(int, value.shape)) for module in modules for name, value in module.parameters}
        loaded = load(tiny.plan(component), dtype, to_pack=packed)
        assert declared == {name: tuple(buffer.shape) for name, buffer in loaded.items()}


def test_what_a_plan_says(float32_tiny: Tiny, bfloat16_tiny: Tiny) -> None:
    assert float32_tiny.plan("vae").dtype == "float32"
    found = bfloat16_tiny.plan("transformer")
    assert found.dtype == "bfloat16"
    numbers = sum(tensor.numel() for tensor in bfloat16_tiny.state("transformer").values())
    assert (found.nbytes("float32"), found.nbytes("bfloat16")) == (4 * numbers, 2 * numbers)


def test_rounding_to_bfloat16_is_torchs() -> None:
    """Ties, subnormals, the largest numbers, infinities and NaN with their upper bits zero, plus random bits."""
    corners = [0x00000000, 0x80000000, 0x3F808000, 0x3F818000, 0x3F808001, 0x7F7FFFFF, 0x00000001, 0x00008000]
    special = [0x7F800000, 0xFF800000, 0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF]
    random = np.random.default_rng(0).integers(0, 2**32, 100_000, dtype=np.uint32)
    values = np.concatenate([np.asarray(corners + special, np.uint32), random]).view(np.float32)
    ours = torch.from_numpy(bfloat16_bits(values)).view(torch.bfloat16)
    theirs = torch.from_numpy(values).to(torch.bfloat16)
    assert torch.equal(ours.isnan(), theirs.isnan())
    assert torch.equal(ours.nan_to_num(7.0), theirs.nan_to_num(7.0))


class TestStrictness:
    def _refused(self, tiny: Tiny, component: str, state: StateDict, tmp_path: Path) -> str:
        with pytest.raises(CheckpointError) as caught:
            tiny.plan(component, save_single(tmp_path / "wrong.safetensors", state))
        return str(caught.value)

    def test_everything_is_reported_together(self, float32_tiny: Tiny, tmp_path: Path) -> None:
        state = float32_tiny.state("transformer")
        for name in ("x_pad_token", "layers.1.feed_forward.w3.weight"):
            del state[name]
        state["layers.0.attention.to_q.bias"] = torch.zeros(128)
        state["cap_pad_token"] = torch.zeros(1, 64)
        state["t_embedder.mlp.0.bias"] = torch.zeros(1024, dtype=torch.int16)
        text = self._refused(float32_tiny, "transformer", state, tmp_path)
        assert "wrong.safetensors (diffusers names) does not fit" in text
        assert "2 missing, 1 unexpected, 1 of the wrong shape, 1 of the wrong dtype" in text
        assert "missing: x_pad_token, layers.1.feed_forward.w3.weight" in text
        assert "unexpected: layers.0.attention.to_q.bias" in text
        assert "cap_pad_token is [1, 64] and must be [1, 128]" in text
        assert "t_embedder.mlp.0.bias is I16 and must be one of F32, BF16, F16, F8_E4M3, F8_E5M2" in text
        assert "numbers of other dtypes are not supported; use a file in bfloat16, float32, float8 or GGUF" in text

    def test_only_the_first_names_are_shown(self, float32_tiny: Tiny, tmp_path: Path) -> None:
        state = float32_tiny.state("vae") | {f"extra.{i}": torch.zeros(1) for i in range(12)}
        text = self._refused(float32_tiny, "vae", state, tmp_path)
        assert "12 unexpected" in text
        assert text.count("extra.") == 5
        assert text.endswith("and 7 more")

    @pytest.mark.parametrize("dtype", [torch.float64, torch.int16, torch.int64])
    def test_other_dtypes(self, float32_tiny: Tiny, dtype: torch.dtype, tmp_path: Path) -> None:
        state = float32_tiny.state("vae")
        state["decoder.conv_in.weight"] = state["decoder.conv_in.weight"].to(dtype)
        assert "1 of the wrong dtype" in self._refused(float32_tiny, "vae", state, tmp_path)

    def test_unused_layers_must_still_be_there(self, float32_tiny: Tiny, tmp_path: Path) -> None:
        state = float32_tiny.state("text_encoder")
        del state["model.layers.2.mlp.up_proj.weight"], state["lm_head.weight"]
        text = self._refused(float32_tiny, "text_encoder", state, tmp_path)
        assert "missing: model.layers.2.mlp.up_proj.weight" in text

    def test_half_renamed(self, float32_tiny: Tiny, tmp_path: Path) -> None:
        """One tensor under the other format's name is missing here and unexpected there, not silently taken."""
        state = float32_tiny.state("transformer")
        state["x_embedder.weight"] = state.pop("all_x_embedder.2-1.weight")
        text = self._refused(float32_tiny, "transformer", state, tmp_path)
        assert "missing: all_x_embedder.2-1.weight" in text
        assert "unexpected: x_embedder.weight" in text

    def test_another_model(self, float32_tiny: Tiny, tmp_path: Path) -> None:
        text = self._refused(
            float32_tiny, "transformer", {"double_blocks.0.img_mod.lin.weight": torch.zeros(2)}, tmp_path
        )
        assert "none of the expected tensors in diffusers names or original single-file names" in text
        assert "double_blocks.0.img_mod.lin.weight" in text

    def test_another_component(self, float32_tiny: Tiny) -> None:
        with pytest.raises(CheckpointError, match=r"transformer: .* holds none of the expected tensors"):
            float32_tiny.plan("transformer", *find_component_files(float32_tiny.directory, "vae"))


class _Add(Module[[Tensor], Tensor]):
    def __init__(self) -> None:
        self.weight = Tensor.zeros([33])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight


def test_max_takes_weights_from_odd_places_of_a_file(tmp_path: Path) -> None:
    """In the file it begins at no multiple of its own size; it is neither copied nor misread."""
    weight = torch.randn(33)
    file = save_single(tmp_path / "odd.safetensors", {"weight": weight, "odd": torch.ones(3, dtype=torch.uint8)})
    header = file.read_bytes()[8 : -weight.nbytes - 3]
    turned = header.replace(b"[0,132]", b"[3,135]").replace(b"[132,135]", b"[0,3]").ljust(len(header))
    assert turned != header
    file.write_bytes(len(turned).to_bytes(8, "little") + turned + b"\1\1\1" + weight.numpy().tobytes())
    tensors = open_source([file]).tensors
    step = ParameterRecipe("weight", (tensors["weight"],), "same", (33,))
    loaded = load(LoadPlan("test", "test", (file,), (step,), {}), "float32")
    assert loaded["weight"]._data_ptr() % 4 == 3
    cpu = DeviceRef.CPU()
    run = build(_Add, DType.float32, cpu).compile(TensorType(DType.float32, ["rows", 33], cpu), weights=loaded)
    x = torch.randn(5, 33)
    assert torch.equal(torch.from_dlpack(run(Tensor(x))), x + weight)


def test_files_behind_what_max_serve_hands_over(bfloat16_tiny: Tiny) -> None:
    files = find_component_files(bfloat16_tiny.directory, "vae")
    assert len(files) > 1
    assert paths_of(load_weights(files)) == files
