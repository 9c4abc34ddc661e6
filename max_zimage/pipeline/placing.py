"""Where a checkpoint's components go: what people write, read, and what `max_zimage.device.placement` makes of it.

Reference: `reference/weights.md` section 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from max.driver import Device, load_devices

from max_zimage import progress
from max_zimage.checkpoint.blocks import streams_of
from max_zimage.checkpoint.config import ModelSpecs
from max_zimage.device.devices import device_spec
from max_zimage.device.dtypes import ModelDtype, model_dtype
from max_zimage.device.memory import NotEnoughMemoryError, available_memory
from max_zimage.device.placement import grouped, place
from max_zimage.device.plans import HOST, Change, Need, Plan, Streams, Wish, usable
from max_zimage.images.tiles import WHOLE, Tiling
from max_zimage.pipeline.estimate import (
    can_stream,
    check_maps,
    decode_bytes,
    map_bytes,
    shared_rows,
    step_bytes,
    text_bytes,
    tiling_of,
)
from max_zimage.pipeline.manifest import CheckpointManifest
from max_zimage.pipeline.storages import storage_on
from max_zimage.pipeline.wishes import Placing
from max_zimage.request.request import GenerationRequest
from max_zimage.sampling.positions import PIXELS_PER_TOKEN, padded

_TEXTS = 512  # tokens of a prompt, at most unless more are asked for
_CAPTION = 128  # tokens of a caption behind a picture's, as `estimate` has it
_QUANTIZED = (
    {"text_encoder": "q4"},
    {"transformer": "int8"},
    {"transformer": "int8", "text_encoder": "int8"},
    {"transformer": "int8", "text_encoder": "q4"},
)
"""What could be quantized, beginning with what changes pictures least."""
_KEPT = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class Size:
    """Pictures that memory is counted for.

    Attributes:
        height: Pixels.
        width: Pixels.
        branches: Ways in which each picture is seen.
        pictures: That share a batch.
        tiling: How they are decoded.
        streams: Whether they can be drawn with streamed blocks.
    """

    height: int
    width: int
    branches: int
    pictures: int = 1
    tiling: Tiling = WHOLE
    streams: bool = True

    @classmethod
    def of(cls, request: GenerationRequest) -> Size:
        """Those of a request."""
        return cls(
            height=request.height,
            width=request.width,
            branches=request.num_branches,
            pictures=request.num_images,
            tiling=tiling_of(request),
            streams=can_stream(request.step_cache, request.nag_scale),
        )

    @classmethod
    def usual(cls, sources: CheckpointManifest) -> Size:
        """The picture that a checkpoint draws where nothing is asked for."""
        defaults = sources.defaults
        return cls(
            height=defaults.height,
            width=defaults.width,
            branches=2 if defaults.guidance_scale > 0 else 1,
            streams=can_stream(defaults.step_cache, defaults.configured.get("nag_scale", 0)),
        )


def needs_of(sources: CheckpointManifest, size: Size, vae_on_host: bool = True) -> dict[str, Need]:
    """What the components of a checkpoint take for pictures of a size; see `needs_by_shape`."""
    streams = streams_of(sources.plans["transformer"], sources.dtypes["transformer"], sources.specs.transformer)
    widened = {name: each.widened_bytes(sources.dtypes[name]) for name, each in sources.plans.items()}
    return needs_by_shape(sources.specs, sources.dtypes, sources.nbytes, size, vae_on_host, streams, widened)


def needs_by_shape(
    specs: ModelSpecs,
    dtypes: Mapping[str, ModelDtype],
    weights: Mapping[str, int],
    size: Size,
    vae_on_host: bool,
    streams: Streams,
    widened: Mapping[str, int] | None = None,
) -> dict[str, Need]:
    """What components take; of their work estimates, as in `max_zimage.pipeline.estimate`.

    Args:
        specs: Shapes of the model.
        dtypes: Component -> dtype that it runs in.
        weights: Component -> bytes of its weights; without those that are not loaded.
        size: The pictures.
        vae_on_host: Whether the autoencoder's device is the host, where exact tiles keep what layers make of a picture.
        streams: How the transformer's weights fall into blocks.
        widened: Component -> bytes of the largest matrix that is widened in front of its product.
    """
    area = size.height, size.width
    tokens = padded(size.height * size.width // PIXELS_PER_TOKEN**2) + _CAPTION
    step = {"items": size.pictures * size.branches, "tokens": tokens}
    decoder = {"pictures": size.pictures, "height": size.height, "width": size.width}
    work = {
        "text_encoder": text_bytes(
            specs.text_encoder, prompts=min(2, size.branches), tokens=_TEXTS, dtype=dtypes["text_encoder"]
        ),
        "transformer": step_bytes(specs.transformer, **step, dtype=dtypes["transformer"]),
        "vae": decode_bytes(specs.vae, **decoder, dtype=dtypes["vae"], tiling=size.tiling)
        + (map_bytes(specs.vae, *area, dtypes["vae"], size.tiling) if vae_on_host else 0),
    }
    beside = widened or {}
    found = {name: Need(weights=nbytes, work=work[name] + beside.get(name, 0)) for name, nbytes in weights.items()}
    if "transformer" in found:
        shared = shared_rows(specs.transformer, **step, dtype=dtypes["transformer"])
        more: Any = {"streams": streams if size.streams else None, "shared": shared}
        found["transformer"] = replace(found["transformer"], **more)
    return found


def placed(sources: CheckpointManifest, wish: Wish, size: Size) -> Plan:
    """Choose for pictures of a size.

    Raises:
        NotEnoughMemoryError: If nothing fits; names the smallest change that would.
    """
    on_host = wish.devices["vae"] == HOST
    if not on_host:
        check_maps(sources, size.height, size.width, size.tiling)
    needs = needs_of(sources, size, on_host)
    return place(needs, memory_of(wish), wish, _changes(sources, wish, size, on_host))


def placed_usually(sources: CheckpointManifest, wish: Wish) -> Plan:
    """Choose before anything is drawn: for the usual picture, or where that does not fit, for the weights alone.

    Raises:
        NotEnoughMemoryError: If the weights do not fit.
    """
    size = Size.usual(sources)
    try:
        return placed(sources, wish, size)
    except NotEnoughMemoryError as error:
        weights = {name: replace(each, work=0, shared=None) for name, each in needs_of(sources, size).items()}
        try:
            return place(weights, memory_of(wish), wish)
        except NotEnoughMemoryError:
            raise error from None


def memory_of(wish: Wish) -> dict[str, int]:
    """Device -> bytes that can be taken: what is free on the CPU, and of an accelerator all but a reserve.

    What something else will take is counted off.
    """
    accelerators = {*wish.devices.values(), *wish.mesh} - {HOST}
    there = {HOST: available_memory()} | {
        name: usable(int(device_of(name).stats["total_memory"])) for name in accelerators
    }
    return {name: max(0, nbytes - wish.taken.get(name, 0)) for name, nbytes in there.items()}


def wish_of(placing: Mapping[str, Any]) -> Wish:
    """Read what people write, by the names of `Placing`; errors are those of `Placing.read`."""
    return Placing(**placing).read()


def tell(wish: Wish) -> None:
    """Say what has no effect."""
    for note in wish.notes:
        progress.note(note)


@lru_cache(maxsize=16)
def device_of(name: str) -> Device:
    """The device of a name such as "cpu" or "gpu:0"."""
    return load_devices([device_spec(name)])[0]


def devices_of(wish: Wish, dtype: str) -> dict[str, Device]:
    """Component -> where it is to run.

    Raises:
        ValueError: If there is no such dtype.
    """
    devices = {name: device_of(each) for name, each in wish.devices.items()}
    model_dtype(dtype, devices["transformer"])
    return devices


def mesh_of(wish: Wish, main: Device) -> list[Device]:
    """The devices that the transformer is to run on, its own first."""
    return [main, *map(device_of, wish.mesh[1:])]


def with_groups(wish: Wish, sources: CheckpointManifest, guidance_scale: float | None = None) -> Wish:
    """The wish with what its devices share; see `max_zimage.device.placement.grouped`.

    Args:
        wish: The wish.
        sources: The checkpoint.
        guidance_scale: Of requests that say nothing; None for the checkpoint's.
    """
    scale = sources.defaults.guidance_scale if guidance_scale is None else guidance_scale
    return grouped(wish, is_guided=scale > 0)


def usual_cache_bytes(plan: Plan) -> int:
    """Features that are kept where nothing is said of it: where the text encoder leaves, it need not come back."""
    return 0 if plan.residency == "resident" else _KEPT


def _changes(sources: CheckpointManifest, wish: Wish, size: Size, on_host: bool) -> list[Change]:
    """What else could be asked for, beginning with what changes least."""
    changes = []
    tiled = replace(size, tiling=Tiling("blend"))
    if size.tiling.kind == "off" and tiled.tiling.is_needed(size.height, size.width):
        changes.append(Change('vae_tiling="blend"', needs_of(sources, tiled, on_host)))
    quarters = [(size.height * part // 4 // 16 * 16, size.width * part // 4 // 16 * 16) for part in (3, 2, 1)]
    for height, width in quarters:
        if min(height, width) > 0:
            smaller = needs_of(sources, replace(size, height=height, width=width, pictures=1), on_host)
            changes.append(Change(f"{width}x{height} pixels", smaller))
    for named in () if sources.quantize or wish.mesh else _QUANTIZED:
        if not named.keys() <= sources.plans.keys():
            continue
        storages = {name: storage_on(each, wish.devices[name] == HOST) for name, each in named.items()}
        there = {name: each for name, each in storages.items() if each is not None}
        if there.keys() == named.keys():
            words = ",".join(f"{name}={each}" for name, each in named.items())
            changes.append(Change(f'quantize="{words}"', needs_of(sources.with_storages(there), size, on_host)))
    return changes
