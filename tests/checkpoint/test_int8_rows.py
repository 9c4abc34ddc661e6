"""Weights in eight bits as an accelerator is given them: codes turned, a scale of each output, values apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import get_args

import numpy as np
import numpy.typing as npt
import pytest
from max.driver import Buffer
from max.dtype import DType
from max.graph import DeviceRef

from max_zimage import ZImagePipeline
from max_zimage.checkpoint.derived import derived_plans
from max_zimage.checkpoint.layout import apart
from max_zimage.checkpoint.load import load, loaded_names, scales_of
from max_zimage.checkpoint.plan import LoadPlan
from max_zimage.checkpoint.quantized import quantized
from max_zimage.compile.ahead_of_time import FULL_MODEL
from max_zimage.compile.registry import made
from max_zimage.graphs.linear import Storage
from max_zimage.pipeline.manifest import CheckpointManifest

Loaded = Mapping[str, Buffer]


@pytest.fixture(scope="module")
def sources() -> CheckpointManifest:
    return ZImagePipeline.prepare(device="cpu").sources


def plans(sources: CheckpointManifest, component: str) -> tuple[LoadPlan, LoadPlan]:
    """Of whole weights and of quantized ones."""
    whole = sources.plans[component]
    return whole, replace(whole, kept_as="int8_rows")


def decoded(weights: Loaded, name: str) -> npt.NDArray[np.float32]:
    """[outputs, inputs]."""
    return (weights[name].to_numpy() * weights[scales_of(name)].to_numpy()).T


@pytest.mark.parametrize("component", ["text_encoder", "transformer"])
def test_every_matrix_is_codes_and_scales(component: str, sources: CheckpointManifest) -> None:
    whole, narrow = plans(sources, component)
    before, after = load(whole, "float32"), load(narrow, "float32")
    assert [*after] == loaded_names(narrow)
    matrices = [each for each in narrow.recipes if narrow.codes(each) is not None]
    assert len(matrices) > 10
    for each in matrices:
        values = before[each.engine].to_numpy()
        codes, scales = after[each.engine], after[scales_of(each.engine)]
        assert (codes.dtype, scales.dtype) == (DType.int8, DType.float32)
        assert (tuple(codes.shape), tuple(scales.shape)) == (values.T.shape, values.shape[:1])
        peaks = np.abs(values).max(axis=1)
        np.testing.assert_array_equal(scales.to_numpy(), peaks / np.float32(127))
        steps = (decoded(after, each.engine) - values) / np.maximum(scales.to_numpy(), 1e-30)[:, np.newaxis]
        assert np.abs(steps).max() < 0.5001  # rounded to the nearest
        assert np.abs(codes.to_numpy().astype(int)).max() == 127
    assert narrow.nbytes("float32") == sum(each.num_elements * each.dtype.size_in_bytes for each in after.values())


@pytest.mark.parametrize("storage", get_args(Storage))
@pytest.mark.parametrize("component", ["text_encoder", "transformer"])
def test_rows_are_rounded_as_they_are_read(component: str, storage: Storage, sources: CheckpointManifest) -> None:
    """As the whole matrix is, its pairs apart, gates above ups."""
    whole = sources.plans[component]
    narrow = replace(whole, kept_as=storage)
    before, after, packings = load(whole, "float32"), load(narrow, "float32"), set[str | None]()
    for each in narrow.recipes:
        if (codes := narrow.codes(each)) is not None and each.packing is not None:
            packings.add(each.packing)
            expected = quantized(before[each.engine].to_numpy(), each.packing, codes)
            for ours, theirs in zip((after[each.engine], after[scales_of(each.engine)]), expected, strict=True):
                np.testing.assert_array_equal(ours.to_numpy(), theirs.to_numpy())
    assert packings == {"panels", "gated"}


def test_memory_of_what_is_widened() -> None:
    """The largest matrix of a block of the published model; none where codes are multiplied as they are."""
    whole = derived_plans(FULL_MODEL)["transformer"]
    found = {each: replace(whole, kept_as=each).widened_bytes("bfloat16") for each in (None, "int8", "int8_rows")}
    assert found == {None: 0, "int8": 0, "int8_rows": 2 * 3840 * 2 * 10240}


def test_what_has_a_bias_stays_whole(sources: CheckpointManifest) -> None:
    whole, narrow = plans(sources, "transformer")
    before, after = load(whole, "bfloat16"), load(narrow, "bfloat16")
    biased = [name.replace(".bias", ".weight") for name in before if name.endswith(".bias")]
    assert biased
    for name in biased:
        assert after[name].dtype == DType.bfloat16


def test_queries_and_keys_come_apart_from_values(sources: CheckpointManifest) -> None:
    """As the blocks of an NVIDIA GPU take them: the same numbers, of codes and of scales."""
    _, narrow = plans(sources, "transformer")
    weights = load(narrow, "bfloat16")
    parts, left = apart(weights), {**weights}
    assert apart(left, instead=True).keys() == parts.keys()
    assert {name for name in weights if name not in left} == {name for name in weights if name.endswith(".qkv.weight")}
    stem = "layers.1.attention"
    joined = np.concatenate([decoded(parts, f"{stem}.{part}.weight") for part in ("qk", "v")])
    np.testing.assert_array_equal(joined, decoded(weights, f"{stem}.qkv.weight"))
    dim = sources.specs.transformer.dim
    assert decoded(parts, f"{stem}.v.weight").shape == (dim, dim)
    assert len(parts) == 4 * sum(name.endswith(".qkv.weight") for name in weights)


def test_graphs_take_what_is_loaded(sources: CheckpointManifest) -> None:
    """Names, shapes and dtypes, where blocks have queries, keys and values in one matrix."""
    specs = sources.specs
    for component, graph in (("transformer", "denoise"), ("text_encoder", "text_encoder")):
        _, narrow = plans(sources, component)
        module, _ = made(graph, specs, "bfloat16", DeviceRef.CPU(), storages={component: "int8_rows"})
        weights = load(narrow, "bfloat16")
        found = {name: (each.dtype, tuple(int(side) for side in each.shape)) for name, each in module.parameters}
        prefix = {name.partition("layers.0")[0] for name in found if "layers.0" in name}.pop()
        quantized = {name for name, (dtype, _) in found.items() if dtype == DType.int8}
        assert quantized
        for name in quantized | {scales_of(name) for name in quantized}:
            given = weights[name.removeprefix(prefix)]
            assert found[name] == (given.dtype, tuple(given.shape))
