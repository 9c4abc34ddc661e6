"""Components out of a checked checkpoint: whether their weights fit, and the weights loaded."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from max.driver import Device
from max.engine import InferenceSession
from max.graph.weights import SafetensorWeights
from max.pipelines.diffusion.config import DenoisingCacheConfig
from max.pipelines.lib.config import PipelineConfig
from max.pipelines.modeling.base.component_model import ComponentModel

from max_zimage.checkpoint.locate import COMPONENTS, route_weight_files
from max_zimage.compile.device_check import check_device
from max_zimage.components import (
    NoTextEncoder,
    ZImageComponent,
    ZImageMeshedTransformer,
    ZImageStreamedTransformer,
)
from max_zimage.device.memory import available_memory, check_device_memory, check_memory
from max_zimage.device.plans import HOST, Need, Plan, weights_beside, weights_on
from max_zimage.graphs.linear import Storage
from max_zimage.host.processes import check_process
from max_zimage.pipeline.attention import Backend as Backend
from max_zimage.pipeline.attention import backend_of as backend_of
from max_zimage.pipeline.attention import with_attention
from max_zimage.pipeline.manifest import CheckpointManifest, find_sources
from max_zimage.pipeline.placing import device_of as device_of
from max_zimage.pipeline.storages import COMPONENTS as STORED
from max_zimage.pipeline.storages import VARIABLE, storages_of
from max_zimage.pipeline.storages import Quantize as Quantize
from max_zimage.request.checks import whole_number

PathName = str | os.PathLike[str]

UNPREFIXED_COMPONENT = "transformer"
"""Takes weight files that stand in no component's folder."""
DEFAULT_STEPS = 50
"""Of a checkpoint that is not distilled."""


def routed(weight_paths: Sequence[Path], unprefixed: str) -> dict[str, list[Path]]:
    """Files that take the place of a checkpoint's own, of each component; see `route_weight_files`."""
    return route_weight_files(weight_paths, COMPONENTS, unprefixed)


def sources_of(
    config: PipelineConfig,
    replaced: Mapping[str, list[Path]],
    unprefixed: str,
    devices: Mapping[str, Device],
    default_steps: int,
    without: Sequence[str] = (),
    quantize: Quantize = None,
    attention: str | None = None,
) -> CheckpointManifest:
    """Find and check a checkpoint; see `find_sources`, `max_zimage.pipeline.storages` and `.attention`."""
    storages = asked_storages(quantize, devices)
    for device in devices.values():
        check_device(device)
    found = find_sources(config, replaced, unprefixed, devices["transformer"], default_steps, without)
    return with_attention(found.with_storages(storages), attention, devices)


def asked_storages(
    quantize: Quantize, devices: Device | Mapping[str, Device], only: Collection[str] = STORED
) -> dict[str, Storage]:
    """What is to be quantized; see `storages_of`. None is what the variable says."""
    return storages_of(os.environ.get(VARIABLE) if quantize is None else quantize, devices, only)


def checked_cache_bytes(given: int | None) -> int:
    """Bytes of a cache of features; 0 for none.

    Raises:
        RequestError: If it is no whole number of at least 0.
    """
    return 0 if given is None else whole_number("embedding_cache_bytes", given, low=0, high=2**50)


def check_fits(sources: CheckpointManifest, device: Device) -> None:
    """Compare the weights with the memory there is.

    Raises:
        NotEnoughMemoryError: If they do not fit.
    """
    check_fit(list(sources.nbytes.values()), device)


def check_fit(sizes: Sequence[int], device: Device) -> None:
    """The same of the bytes of each component.

    Raises:
        NotEnoughMemoryError: If they do not fit.
    """
    # Weights pass through host memory whatever the device is, on the way to a GPU one component at a time.
    check_memory(sum(sizes) if device.is_host else max(sizes), available_memory())
    if not device.is_host:
        check_device_memory(sum(sizes), device)


def check_mesh(sizes: Mapping[str, int], plan: Plan, devices: Sequence[Device]) -> None:
    """Compare what each device of a mesh is to hold with its memory, and the devices with each other.

    Args:
        sizes: Component -> bytes of its weights.
        plan: Where they go.
        devices: Those of `plan.mesh`.

    Raises:
        NotEnoughMemoryError: If they do not fit.
        ValueError: If the devices are of several kinds: what runs on all of them is compiled for one.
    """
    there = [each for each in zip(plan.mesh, devices, strict=True) if not each[1].is_host]
    kinds = {name: f"{device.api} {device.architecture_name}" for name, device in there}
    if len({*kinds.values()}) > 1:
        listed = ", ".join(f"{name} is {kind}" for name, kind in kinds.items())
        raise ValueError(f"devices that compute together must be of one architecture: {listed}; name those that are")
    for name, device in there:
        needs = {part: Need(weights=size, work=0) for part, size in sizes.items()}
        check_device_memory(sum(weights_on(name, plan, part, need) for part, need in needs.items()), device)


def new_session(devices: list[Device]) -> InferenceSession:
    """Where graphs run.

    Raises:
        RuntimeError: If MAX cannot be used in this process because it is a fork.
    """
    check_process()
    return InferenceSession(devices=[*dict.fromkeys(devices)])


def load_components(
    make: Mapping[str, type[ZImageComponent]],
    sources: CheckpointManifest,
    plan: Plan,
    devices: Mapping[str, Device],
    session: InferenceSession,
    cache_config: DenoisingCacheConfig | None,
) -> dict[str, ComponentModel]:
    """Load the weights of all components that stay, from what was found of them; those that take turns come later.

    Args:
        make: Component -> its class.
        sources: What was found.
        plan: Where they run, and which of them stay.
        devices: Component -> where it runs.
        session: For the transformer's graphs.
        cache_config: MAX's.

    Raises:
        NotEnoughMemoryError: If they do not fit; raised before anything is loaded.
    """
    if plan.is_plain:
        check_fits(sources, devices["transformer"])
    elif {*plan.devices.values()} != {HOST}:  # on the way to an accelerator weights pass through the host's memory
        whole = [size for name, size in sources.nbytes.items() if name != "transformer" or plan.residency != "streamed"]
        check_memory(max(whole), available_memory())
    mesh = [devices["transformer"], *map(device_of, plan.mesh[1:])]
    if plan.mesh:
        check_mesh(sources.nbytes, plan, mesh)
    components: dict[str, ComponentModel] = {}
    sizes, sessions = sources.nbytes, {devices["transformer"]: session}
    for name, component in make.items():
        device = devices.get(name, devices["transformer"])
        if name not in sources.plans:
            components[name] = NoTextEncoder(sources.specs.text_encoder, sources.dtypes[name], device)
            continue
        if device not in sessions:
            sessions[device] = InferenceSession(devices=[device])
        # Only the files' names: MAX would open them once more, as safetensors whatever they are.
        unread: dict[str, Any] = {"tensors": frozenset(), "tensors_to_file_idx": {}, "_st_file_handles": {}}
        weights, checked = SafetensorWeights(sources.files[name], **unread), sources.plans[name]
        on = mesh if name == "transformer" else [device]
        what = sources.configs[name], sources.dtypes[name], on, weights
        how: dict[str, Any] = {"session": sessions[device], "cache_config": cache_config, "plan": checked}
        if name == "transformer" and plan.residency == "streamed":
            component = ZImageStreamedTransformer
        if name == "transformer" and plan.mesh:
            component = ZImageMeshedTransformer
            how |= {"groups": plan.groups, "is_padded": plan.is_padded}
        how |= {"is_away": plan.residency != "resident", "attention": sources.attention.get(name)}
        components[name] = made = component(*what, **how)
        made.nbytes_beside = weights_beside(plan.devices[name], plan, name, sizes)
        if isinstance(made, ZImageMeshedTransformer):
            made.nbytes_beside_each = tuple(weights_beside(each, plan, name, sizes) for each in plan.mesh)
    return components
