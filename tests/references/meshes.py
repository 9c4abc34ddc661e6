"""Steps on simulated meshes and the plain step, of one random transformer and compiled as one module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from max.driver import CPU, Buffer
from max.dtype import DType
from max.engine import InferenceSession, Model
from max.graph import DeviceRef
from max.graph import Module as GraphModule

from max_zimage.graphs.dims import FirstBlock
from max_zimage.graphs.kernel_library import compile_with_kernels
from max_zimage.graphs.layers import build, trace
from max_zimage.graphs.model.mesh_spec import MeshSpec
from max_zimage.graphs.model.transformer import TransformerSpec
from max_zimage.graphs.step.compose import denoise_step
from max_zimage.graphs.step.first_block import FirstBlockStep
from max_zimage.graphs.step.inputs import AdvanceInputs, BranchInputs, GuideInputs, PredictInputs
from max_zimage.graphs.step.meshed import MeshedPredict, meshed_step
from max_zimage.graphs.step.meshed_first_block import MeshedFirstBlockStep
from max_zimage.graphs.step.predict import Predict
from max_zimage.sampling.positions import padded, sequence_offsets
from tests.references.fused_steps import as_on_nvidia

FloatArray = npt.NDArray[np.float32]

SPEC = TransformerSpec(
    dim=64,
    num_heads=2,
    num_layers=2,
    num_refiner_layers=1,
    in_channels=16,
    caption_dim=64,
    norm_eps=1e-5,
    rope_theta=256.0,
    axes_dims=(8, 12, 12),
    axes_lens=(1536, 512, 512),
    t_scale=1000.0,
)
"""Heads of 32, which the project's own attention takes; two main layers, so that one's result is another's input."""
SMALL = replace(SPEC, num_layers=1)
"""The same with a block of each kind."""
FUSED = replace(SPEC, dim=256, num_heads=4, axes_dims=(16, 24, 24))
"""The same in the least width that blocks of an NVIDIA GPU take."""
PLAIN = "plain"


class Variant(NamedTuple):
    """A step on several devices.

    Attributes:
        devices: How many.
        groups: Of them.
        is_padded: Whether it tells rows of unequal length apart.
    """

    devices: int
    groups: int
    is_padded: bool

    @property
    def name(self) -> str:
        """Of its graph."""
        return f"meshed_{self.devices}_{self.groups}{'_padded' if self.is_padded else ''}"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A batch.

    Attributes:
        image_tokens: Of each picture.
        captions: Tokens of each branch row's caption; with guidance the pictures' prompts, then their negative ones.
        batch: Pictures.
        guidance: How far guidance goes; 0 for one branch a picture.
        longest: Tokens of a caption that was in the batch, too.
    """

    image_tokens: int
    captions: tuple[int, ...]
    batch: int
    guidance: float
    longest: int = 0

    @property
    def is_full(self) -> bool:
        """Whether no row is padded to the length of another."""
        return len({padded(each) for each in (*self.captions, self.longest or self.captions[0])}) == 1


def compiled(variants: Sequence[Variant], shape: TransformerSpec = SPEC) -> dict[str, Model]:
    """The plain step and others, bound to the same random weights.

    Args:
        variants: Of a mesh each.
        shape: Of the transformer.
    """
    made = {PLAIN: _built(lambda: denoise_step(shape))}
    made |= {each.name: _built(partial(meshed_step, _spec(each, shape), each.is_padded)) for each in variants}
    return _together(made)


def compiled_predicts(variants: Sequence[Variant], cached: Sequence[int] = ()) -> dict[str, Model]:
    """The same without guidance and update, which are those of any step: a third of what MAX has to compile.

    Args:
        variants: Of a mesh each.
        cached: Devices of further ones, with first-block caching by the noise refiner's first block.
    """
    made = {PLAIN: _built(lambda: Predict(SMALL))}
    made |= {each.name: _built(partial(MeshedPredict, _spec(each, SMALL), each.is_padded)) for each in variants}
    made |= {cached_name(devices): _built(partial(_cached, devices, "noise_refiner", SMALL)) for devices in cached}
    return _together(made)


def compiled_fused(variants: Sequence[Variant]) -> dict[str, Model]:
    """`compiled` of the graphs that an NVIDIA GPU gets, for a CPU; see `tests.references.fused_steps`."""
    with as_on_nvidia():
        return compiled(variants, shape=FUSED)


def cached_name(devices: int) -> str:
    """Of a graph with first-block caching."""
    return f"cached_{devices}"


def compiled_with_cache(devices: int, block: FirstBlock) -> Model:
    """A step with first-block caching, alone: on one device its blocks have the names of the plain step's.

    Args:
        devices: How many; 1 is the step of one device.
        block: Decides.
    """
    return _together({"cached": _built(partial(_cached, devices, block))})["cached"]


def _spec(variant: Variant, shape: TransformerSpec) -> MeshSpec:
    return MeshSpec(transformer=shape, places=tuple(range(variant.devices)), groups=variant.groups)


def _built(make: Callable[[], Any]) -> Any:
    return build(make, DType.float32, DeviceRef.CPU())


def _together(made: Mapping[str, Any]) -> dict[str, Model]:
    """Compiled as one module, in which every kernel is compiled once."""
    cpu, together = DeviceRef.CPU(), GraphModule()
    graphs = [trace(module, module.input_types(DType.float32, cpu), name, together) for name, module in made.items()]
    session = InferenceSession(devices=[CPU()])
    whole = compile_with_kernels(session, together, graphs)
    weights = _weights(next(iter(made.values())))
    ends = {name.removeprefix("predict."): data for name, data in weights.items()}
    known = {name for module in made.values() for name, _ in module.parameters}
    every = {**ends, **{f"predict.{name}": data for name, data in ends.items()}}
    return dict(session.init_all(whole, weights_registry={name: every[name] for name in known}))


def _cached(devices: int, block: FirstBlock, shape: TransformerSpec = SPEC) -> Any:
    if devices == 1:
        return FirstBlockStep(shape, block)
    return MeshedFirstBlockStep(MeshSpec(transformer=shape, places=tuple(range(devices))), block)


def _weights(module: Any) -> Mapping[str, Buffer]:
    """Nothing zero or one by chance; scaled by what is summed, so that numbers stay near one."""
    draw = np.random.default_rng(7)
    found = {}
    for name, parameter in module.parameters:
        shape = [int(side) for side in parameter.shape]
        values = draw.standard_normal(shape).astype(np.float32)
        if "norm" in name:
            values = 1 + 0.2 * values
        elif name.endswith("bias"):
            values *= 0.2
        elif len(shape) == 3:  # packed: [panels, inputs, outputs of a panel]
            values *= shape[1] ** -0.5
        elif not name.endswith("pad_token"):
            values *= shape[-1] ** -0.5
        found[name] = Buffer.from_numpy(np.ascontiguousarray(values, np.float32))
    return found


def arguments(case: Case, seed: int = 0, spec: TransformerSpec = SPEC) -> list[Buffer]:
    """Random arguments of a step, in order."""
    draw = np.random.default_rng(seed)
    lengths = [padded(each) for each in case.captions]
    items, image, caption = len(lengths), padded(case.image_tokens), max(*lengths, padded(case.longest))
    attended = [image + each for each in lengths]
    angles = draw.uniform(0, 6.28, (items, image + caption, spec.head_dim // 2))
    rope = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    rows = np.arange(items) % case.batch
    modulation = draw.standard_normal((spec.num_blocks, 4, 1, spec.dim)) * 0.3
    modulation[:, 0::2] += 1
    latents = draw.standard_normal((case.batch, case.image_tokens, spec.patch_dim))
    predict = PredictInputs(
        latents=_float(latents),
        caption_tokens=_float(draw.standard_normal((items, caption, spec.dim))),
        image_rope=_float(rope[:, :image]),
        rope=_float(rope),
        valid_length=Buffer.from_numpy(np.asarray(attended, np.uint32)),
        offsets=Buffer.from_numpy(sequence_offsets(attended, image + caption)),
        latent_rows=_rows(rows),
        variants=_rows(np.zeros(items)),
        modulation=_float(modulation),
        final_scale=_float(1 + 0.2 * draw.standard_normal(spec.dim)),
    )
    first = np.arange(case.batch)
    branches = BranchInputs(_rows(first), _rows(first + items - case.batch), _rows(np.zeros((0, case.batch))))
    guide = GuideInputs(_float([case.guidance]), _float(np.zeros(0)), _float([0.0]))
    nothing = [_float(np.zeros(shape)) for shape in ((0, *latents.shape), (0,), (0, 2), (0, 0))]
    advance = AdvanceInputs(nothing[0], _float([-0.1, 0.0]), *nothing[1:])
    return [*predict, *branches, *guide, *advance]


def run(model: Model, given: Sequence[Buffer]) -> dict[str, FloatArray]:
    """What a step gives, or its Predict."""
    if len(results := model.execute(*given[: len(model.input_metadata)])) == 1:
        return {"velocity": np.array(results[0].to_numpy())}
    latents, _, prediction, velocity = results
    found = {"latents": latents, "prediction": prediction, "velocity": velocity}
    return {name: np.array(each.to_numpy()) for name, each in found.items()}


class Walked(NamedTuple):
    """An evaluation with first-block caching.

    Attributes:
        velocity: float32 [items, image_tokens, patch_dim].
        first: What the first block added.
        computed: 1 if all blocks were.
    """

    velocity: FloatArray
    first: FloatArray
    computed: int


def walk(model: Model, given: Sequence[Buffer], block: FirstBlock, threshold: float) -> list[Walked]:
    """Three evaluations of one row with first-block caching, whose latents move a little from one to the next."""
    own = PredictInputs(*given[: len(PredictInputs._fields)])
    rope = own.image_rope if block == "noise_refiner" else own.rope
    latents = np.array(own.latents.to_numpy())
    moves = np.random.default_rng(5).standard_normal(latents.shape).astype(np.float32)
    shapes = [(1, int(rope.shape[1]), SPEC.dim), (1, latents.shape[1], SPEC.dim)]
    residuals, found = [_float(np.zeros(shape)) for shape in shapes], []
    for step in range(3):
        moved = own._replace(latents=_float(latents + 0.02 * step * moves))
        velocity, *residuals, flag = model.execute(*moved, _float([threshold]), *residuals)
        numbers, first = (np.array(each.to_numpy()) for each in (velocity, residuals[0]))
        found.append(Walked(numbers, first, int(flag.to_numpy()[0])))
    return found


def _float(values: npt.ArrayLike) -> Buffer:
    return Buffer.from_numpy(np.ascontiguousarray(values, np.float32))


def _rows(values: npt.ArrayLike) -> Buffer:
    return Buffer.from_numpy(np.ascontiguousarray(values, np.int32))
