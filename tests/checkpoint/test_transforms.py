"""Transforms between the files and the model: what they reach, that numbers are rounded once, and binding again."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from max.driver import Buffer
from max.dtype import DType
from safetensors.torch import load_file, save_file

from max_zimage import ZImagePipeline
from max_zimage.checkpoint import transforms
from max_zimage.checkpoint.formats import open_source
from max_zimage.checkpoint.load import load
from max_zimage.checkpoint.numbers import FloatArray
from max_zimage.checkpoint.plan import LoadPlan, plan
from max_zimage.checkpoint.tensors import Files, Source, Tensor
from max_zimage.checkpoint.transforms.base import Computed, Transform, computed
from max_zimage.compile import modules
from max_zimage.compile.compiler import bind
from max_zimage.device.dtypes import DTYPES, ModelDtype
from max_zimage.embedded import PATH
from max_zimage.errors import CheckpointError
from tests.references.diffusers_runs import Pair, relative_l2
from tests.references.recorded import draw

KEYS = "layers.1.attention.to_k.weight"
REQUEST = "one step"


@dataclass(frozen=True)
class Added:
    """Adds a column times a row to some matrices, as fused adapters do, in the rows of the file."""

    names: Collection[str]
    scale: float = 1.0

    def __call__(self, source: Source) -> Source:
        replaced = {name: computed(source.tensors[name], self._change(source.tensors[name])) for name in self.names}
        return replace(source, tensors={**source.tensors, **replaced})

    def _change(self, tensor: Tensor) -> Callable[[FloatArray, int, Files], FloatArray]:
        def change(rows: FloatArray, first: int, files: Files) -> FloatArray:
            return rows + self.scale * self.delta(tensor.shape)[first : first + len(rows)]

        return change

    @staticmethod
    def delta(shape: tuple[int, ...]) -> FloatArray:
        random = np.random.default_rng(3)
        column, row = random.standard_normal((shape[0], 1)), random.standard_normal((1, shape[1]))
        return np.asarray(0.02 * column * row, np.float32)


def _plan(pipeline: ZImagePipeline, *applied: Transform) -> LoadPlan:
    transformer = pipeline.transformer
    return plan(transformer.names(), open_source(transformer.plan().files), applied)


def _bits(buffer: Buffer) -> FloatArray:
    kind = np.uint32 if buffer.dtype == DType.float32 else np.uint16
    return np.asarray(buffer.view(DType.uint8, (buffer.num_elements * kind().itemsize,)).to_numpy().view(kind))


@pytest.mark.parametrize("dtype", DTYPES)
def test_only_the_rows_of_a_part_change(embedded: Pair, dtype: ModelDtype) -> None:
    """Keys are the second third of what they are stacked in; everything else stays to the bit."""
    base, changed = load(_plan(embedded.ours), dtype), load(_plan(embedded.ours, Added([KEYS])), dtype)
    assert base.keys() == changed.keys()
    differing = {name for name in base if (_bits(base[name]) != _bits(changed[name])).any()}
    assert differing == {"layers.1.attention.qkv.weight"}
    (name,) = differing
    rows = (_bits(base[name]) != _bits(changed[name])).reshape(base[name].shape).any(axis=1)
    dim = len(rows) // 3
    assert rows[dim : 2 * dim].all()
    assert not rows[:dim].any()
    assert not rows[2 * dim :].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_added_changes_no_bit(embedded: Pair, dtype: ModelDtype) -> None:
    base = load(_plan(embedded.ours), dtype)
    none = load(_plan(embedded.ours, Added([KEYS], 0.0)), dtype)
    assert all((_bits(base[name]) == _bits(none[name])).all() for name in base)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_numbers_are_rounded_once(stored: torch.dtype, embedded: Pair, tmp_path: Path) -> None:
    """Read to float32, changed there, then rounded: number by number what PyTorch makes of the same file."""
    name = "layers.0.feed_forward.w2.weight"
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    state = {each: numbers.to(stored) for each, numbers in _state("transformer").items()}
    save_file(state, file)
    transformer = embedded.ours.transformer
    found = plan(transformer.names(), open_source([file]), [Added([name], 0.37)])
    numbers = torch.from_numpy(state[name].float().numpy() + 0.37 * Added.delta(tuple(state[name].shape)))
    for dtype in DTYPES:
        wanted = numbers.to(getattr(torch, dtype)).view(torch.int32 if dtype == "float32" else torch.int16)
        assert (_bits(load(found, dtype)[name]).view(f"i{wanted.itemsize}") == wanted.reshape(-1).numpy()).all()


def test_what_is_always_applied_comes_first(embedded: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def seen(name: str) -> Transform:
        def transform(source: Source) -> Source:
            order.append(name)
            return source

        return transform

    monkeypatch.setattr(transforms, "ALWAYS", (seen("always"),))
    _plan(embedded.ours, seen("given"), seen("given last"))
    assert order == ["always", "given", "given last"]


def test_a_tensor_may_be_made_of_two_and_use_one_up(embedded: Pair, tmp_path: Path) -> None:
    """A matrix in units of its scale, which is a tensor beside it: neither the names nor the shapes fit before."""
    name, state = "layers.0.attention.to_v.weight", _state("transformer")
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    save_file({**state, name: (state[name] / 0.25).T.contiguous(), f"{name}_units": torch.tensor(0.25)}, file)
    names, opened = embedded.ours.transformer.names(), open_source([file])
    with pytest.raises(CheckpointError, match=f"1 unexpected\n.*unexpected: {name}_units"):
        plan(names, opened)

    def scaled(source: Source) -> Source:
        tensors = dict(source.tensors)
        factor, matrix = tensors.pop(f"{name}_units"), tensors[name]

        def change(rows: FloatArray, first: int, files: Files) -> FloatArray:
            whole = matrix.rows(0, matrix.shape[0], files).T * factor.rows(0, 1, files)
            return np.asarray(whole[first : first + len(rows)])

        tensors[name] = Computed(matrix.file, name, "F32", matrix.shape[::-1], matrix, change)
        return replace(source, tensors=tensors)

    loaded = load(plan(names, opened, [scaled]), "float32")
    base = load(_plan(embedded.ours), "float32")
    assert all((_bits(base[each]) == _bits(loaded[each])).all() for each in base)


@pytest.fixture(scope="module")
def pipeline() -> ZImagePipeline:
    """One of this file's own: what is bound here is to reach no other test."""
    return ZImagePipeline.from_pretrained(PATH)


class TestBinding:
    def test_other_weights_are_those_of_another_checkpoint(self, pipeline: ZImagePipeline, tmp_path: Path) -> None:
        """Bit for bit, without a compile, and back."""
        other = tmp_path / "other"
        shutil.copytree(PATH, other)
        file = other / "transformer" / "diffusion_pytorch_model.safetensors"
        added = Added([KEYS, "layers.0.adaLN_modulation.0.weight", "cap_embedder.1.weight"])
        state = {name: numbers.float() for name, numbers in load_file(file).items()}
        for name in added.names:
            state[name] = state[name] + torch.from_numpy(added.delta(tuple(state[name].shape)))
        save_file(state, file)
        wanted = draw(ZImagePipeline.from_pretrained(other, dtype="float32"), REQUEST)
        before, compiled = draw(pipeline, REQUEST), dict(modules.counts)
        changed = pipeline.transformer.bind([added])
        assert changed == {"layers.1.attention.qkv.weight", "modulation.weight", "cap_embedder.linear.weight"}
        drawn = draw(pipeline, REQUEST)
        assert relative_l2(drawn.latents, before.latents) > 1e-3
        assert drawn.digests == wanted.digests
        assert pipeline.transformer.bind([added]) != frozenset()  # another transform, as far as anybody can tell
        assert draw(pipeline, REQUEST).digests == wanted.digests
        assert pipeline.transformer.bind() == changed
        assert pipeline.transformer.bind() == frozenset()
        assert draw(pipeline, REQUEST).digests == before.digests
        assert dict(modules.counts) == compiled

    def test_a_graph_that_comes_later_has_them(self, pipeline: ZImagePipeline) -> None:
        """The encoder is defined when it is first asked for, and compiled after that."""
        name = "encoder.conv_out.bias"

        def shifted(source: Source) -> Source:
            tensor = source.tensors[name]
            changed = computed(tensor, lambda rows, first, files: rows + np.float32(1))
            return replace(source, tensors={**source.tensors, name: changed})

        vae = pipeline.vae
        image = Buffer.from_numpy(np.zeros((1, 64, 64, 3), np.uint8))
        noise = Buffer.from_numpy(np.zeros((1, 16, 8, 8), np.float32))
        vae.bind([shifted])
        moved = vae.encode(image, noise).to_numpy().copy()
        vae.bind()
        back = vae.encode(image, noise).to_numpy().copy()
        # The first half of the bias belongs to the mean.
        assert moved - back == pytest.approx(vae.spec.scaling_factor, rel=1e-4)

    def test_what_does_not_fit_leaves_everything_as_it_is(self, pipeline: ZImagePipeline) -> None:
        def shorter(source: Source) -> Source:
            tensor = source.tensors[KEYS]
            cut = Computed(tensor.file, KEYS, "F32", (tensor.shape[0] - 1, tensor.shape[1]), tensor, lambda r, *_: r)
            return replace(source, tensors={**source.tensors, KEYS: cut})

        before = draw(pipeline, REQUEST)
        with pytest.raises(CheckpointError, match=f"{KEYS} is .* and must be"):
            pipeline.transformer.bind([shorter])
        assert draw(pipeline, REQUEST).digests == before.digests
        assert pipeline.transformer.bind() == frozenset()

    def test_graphs_that_share_a_parameter_are_bound_together(self, pipeline: ZImagePipeline) -> None:
        transformer = pipeline.transformer
        data = transformer.load_weights(["cap_embedder.linear.weight"])
        with pytest.raises(ValueError, match=r"conditioning reads cap_embedder\.linear\.weight, too"):
            bind([transformer.model], data)


def _state(component: str) -> dict[str, torch.Tensor]:
    """The embedded model's tensors, in float32."""
    state = load_file(PATH / component / "diffusion_pytorch_model.safetensors")
    return {name: numbers.float() for name, numbers in state.items()}
