"""Every graph compiled for a target, which need not be there: a GPU is stood in for by one of MAX's virtual devices.

    target -> child processes -> seconds, peak memory, or the compiler's error of each graph

MAX fixes the virtual device before anything else happens in a process, and the largest graphs compile in gigabytes that
only the end of a process gives back: hence the children, one a compiled graph; see `max_zimage.compile.jobs`.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import replace

from max.dtype import DType
from max.graph import DeviceRef

from max_zimage.checkpoint.config import QWEN3_4B, ModelSpecs
from max_zimage.compile.artifacts import check_writable
from max_zimage.compile.entry import EVERY_COMPONENT, ComponentName
from max_zimage.compile.jobs import Job, Report, done
from max_zimage.compile.registry import AHEAD, GRAPHS, MESHED, ONE, TWO, Mesh
from max_zimage.device.dtypes import ModelDtype
from max_zimage.device.mesh import groups_of
from max_zimage.graphs.diffusion_gemma.spec import DiffusionGemmaSpec, LayerShape, LayerType
from max_zimage.graphs.linear import Storage
from max_zimage.graphs.model.attention_backends import Backend, available
from max_zimage.graphs.model.mesh_spec import MOST
from max_zimage.graphs.model.transformer import TransformerSpec
from max_zimage.graphs.model.vae import VaeSpec
from max_zimage.sampling.schedule import ScheduleSpec

TARGETS: dict[str, tuple[str, str] | None] = {
    "cpu": None,
    "cuda:sm_90a": ("cuda", "sm_90a"),
    "cuda:sm_100a": ("cuda", "sm_100a"),
    "hip:gfx942": ("hip", "gfx942"),
}
"""Target -> API and architecture of the virtual device; None is this machine's CPU."""

_SLIDING: LayerType = "sliding_attention"
_FULL: LayerType = "full_attention"

DIFFUSION_GEMMA = DiffusionGemmaSpec(
    vocab_size=262144,
    hidden_size=2816,
    intermediate_size=2112,
    expert_size=704,
    num_experts=128,
    experts_per_token=8,
    num_heads=16,
    sliding=LayerShape(key_heads=8, head_dim=256, has_values=True, rope_theta=1e4, rotated=128),
    full=LayerShape(key_heads=2, head_dim=512, has_values=False, rope_theta=1e6, rotated=64),
    layer_types=(*[_SLIDING] * 5, _FULL) * 5,
    sliding_window=1024,
    norm_eps=1e-6,
    softcap=30.0,
    canvas_length=256,
    max_positions=262144,
)
"""The published DiffusionGemma, google/diffusiongemma-26B-A4B-it."""

FULL_MODEL = ModelSpecs(
    text_encoder=QWEN3_4B,
    transformer=TransformerSpec(
        dim=3840,
        num_heads=30,
        num_layers=30,
        num_refiner_layers=2,
        in_channels=16,
        caption_dim=2560,
        norm_eps=1e-5,
        rope_theta=256.0,
        axes_dims=(32, 48, 48),
        axes_lens=(1536, 512, 512),
        t_scale=1000.0,
    ),
    vae=VaeSpec(
        latent_channels=16,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        norm_num_groups=32,
        scaling_factor=0.3611,
        shift_factor=0.1159,
    ),
    schedule=ScheduleSpec(shift=3.0, num_train_timesteps=1000),
    diffusion_gemma=DIFFUSION_GEMMA,
)
"""The published Z-Image models, whose shapes are the same, and the model that writes text."""


def check_target(name: str) -> str:
    """Return the name of a target.

    Raises:
        ValueError: If there is no such target; names those there are.
    """
    if name not in TARGETS:
        raise ValueError(f"target must be one of {', '.join(TARGETS)}, got {name!r}")
    return name


def check_graphs(
    names: Sequence[str], components: Collection[ComponentName] = EVERY_COMPONENT, mesh: Mesh = ONE
) -> tuple[str, ...]:
    """Return names of graphs in the order they are compiled; all of a model's if none is named.

    Args:
        names: Of graphs.
        components: That the model has.
        mesh: That the transformer runs on, from `check_mesh`; its graphs come last.

    Raises:
        ValueError: If there is no such graph; names those there are.
    """
    shared = [] if mesh == ONE else [name for name in MESHED if mesh.groups == 1 or not GRAPHS[name].is_of_one_row]
    every = (*AHEAD, *shared)
    there = [name for name in every if GRAPHS[name].component in components]
    unknown = [name for name in names if name not in there]
    if unknown:
        raise ValueError(f"graphs must be among {', '.join(there)}, got {', '.join(map(repr, unknown))}")
    return tuple(name for name in there if not names or name in names)


def check_mesh(devices: int, split: str | None, target: str, *, is_guided: bool = False) -> Mesh:
    """Return how many devices the transformer runs on together.

    Args:
        devices: Of the target.
        split: What they share, see `max_zimage.device.mesh`; None is auto there.
        target: One of `TARGETS`.
        is_guided: Whether pictures have two branches by default.

    Raises:
        ValueError: If there cannot be so many, or the target is no GPU.
    """
    if devices == 1:
        if split is not None:
            raise ValueError("split says what several devices share; name their number with --device-count")
        return ONE
    if TARGETS[target] is None:
        raise ValueError(f"several devices are GPUs, got target {target!r}; name one, such as cuda:sm_90a")
    if not 2 <= devices <= MOST:
        raise ValueError(f"device-count must be 1 to {MOST}, got {devices}")
    return Mesh(devices, groups_of(split or "auto", devices, is_guided=is_guided))


def check_keep(target: str) -> None:
    """Check that artifacts for a target can be kept.

    Raises:
        ValueError: If it is the CPU, or the folder cannot be written to.
    """
    if TARGETS[target] is None:
        raise ValueError(
            f"keep is for GPUs, got target {target!r}, whose graphs are one module that the first picture there keeps; "
            "leave it out"
        )
    check_writable()


def check_listable(target: str) -> None:
    """Check that the launches for a target can be listed.

    Raises:
        ValueError: If it is the CPU, which launches nothing.
    """
    if TARGETS[target] is None:
        raise ValueError(f"kernels are listed for GPUs, got target {target!r}; name a GPU, such as cuda:sm_90a")


def check_symbols(target: str, list_kernels: bool) -> None:
    """Check that the kernels of the machine code for a target can be listed, below the list of the launches.

    Raises:
        ValueError: If that list is not asked for, or the target is none of CUDA's.
    """
    if not list_kernels:
        raise ValueError("symbols are those of a list of kernels; ask for that too, with --list-kernels")
    if not target.startswith("cuda:"):
        raise ValueError(f"symbols are read from CUDA's machine code, got target {target!r}; name one of CUDA's")


def check_attention(name: str | None, specs: ModelSpecs, target: str, dtype: ModelDtype) -> Backend | None:
    """Return how attention is computed, as graphs take it; None for what they do anyway.

    Raises:
        ValueError: If there is no such way on a target; names those there are.
    """
    place = DeviceRef.CPU() if TARGETS[target] is None else DeviceRef.GPU()
    there = available(DType[dtype], place, (specs.text_encoder.head_dim, specs.transformer.head_dim))
    if name in (None, "auto", there[0]):
        return None
    for each in there:
        if each == name:
            return each
    raise ValueError(f"attention_backend must be auto or {' or '.join(there)} for {target} in {dtype}, got {name!r}")


def default_dtype(target: str) -> ModelDtype:
    """The dtype that a model runs in on a target unless told otherwise; see `max_zimage.device.devices.model_dtype`."""
    return "float32" if TARGETS[target] is None else "bfloat16"


def with_layers(specs: ModelSpecs, layers: int) -> ModelSpecs:
    """The same widths with fewer repetitions: every distinct kernel is still there.

    Args:
        specs: Shapes of a model.
        layers: Layers of the text encoder that run, main blocks and refiner blocks; of a DiffusionGemma there are two
            at least, one of each type.
    """
    gemma = specs.diffusion_gemma
    types = (*[_SLIDING] * max(layers - 1, 1), _FULL)
    return replace(
        specs,
        diffusion_gemma=gemma and replace(gemma, layer_types=types),
        text_encoder=replace(specs.text_encoder, num_layers=layers + 1),
        transformer=replace(specs.transformer, num_layers=layers, num_refiner_layers=layers),
    )


def compile_target(
    specs: ModelSpecs,
    target: str,
    dtype: ModelDtype,
    graphs: Sequence[str],
    *,
    keep: bool = False,
    list_kernels: bool = False,
    symbols: bool = False,
    attention: Backend | None = None,
    mesh: Mesh = TWO,
    storages: Mapping[str, Storage] | None = None,
) -> Generator[Report]:
    """Compile graphs one after the other, each in a process of its own, as the pipeline does on an accelerator.

    What they launch is listed by one process for all of them: most of its seconds would be starting it anew.

    Args:
        specs: Shapes of the model; weights are not needed.
        target: One of `TARGETS`.
        dtype: Of weights and computation.
        graphs: From `check_graphs`.
        keep: Whether to keep the artifacts where a pipeline looks for them.
        list_kernels: Whether to list what the graphs launch instead, on a GPU: seconds in place of minutes.
        symbols: Whether to compile what is listed too, for the names in its machine code.
        attention: How attention is computed, from `check_attention`.
        mesh: From `check_mesh`, of the graphs that run on several devices.
        storages: Component -> how its matrices are kept, from `max_zimage.pipeline.storages.storage_on`.

    Yields:
        One report a graph, failed or not. The next graph is compiled when the next report is asked for.

    Raises:
        ValueError: If the target is unknown or launches nothing, artifacts cannot be kept, or there are no symbols to
            be told.
    """
    check_target(target)
    if symbols:
        check_symbols(target, list_kernels)
    if list_kernels:
        check_listable(target)
    if keep:
        check_keep(target)
    ways = {"keep": keep, "list_kernels": list_kernels, "symbols": symbols}
    first = Job(
        graph="",
        target=target,
        dtype=dtype,
        specs=specs,
        attention=attention,
        mesh=mesh,
        storages=storages or {},
        **ways,
    )
    jobs = [replace(first, graph=graph) for graph in graphs]
    apart = [job for job in jobs if GRAPHS[job.graph].is_meshed]  # with a number of devices of their own
    together = [job for job in jobs if job not in apart]
    for group in [together, apart] if list_kernels and not symbols else [[job] for job in jobs]:
        yield from done(group)
