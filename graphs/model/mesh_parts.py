"""What a device of a mesh has of a tensor that all of them could see: its branch rows, and its part of the tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from max.driver import Device
from max.dtype import DType
from max.experimental import functional as F
from max.experimental.sharding import DeviceMapping, DeviceMesh, Replicated
from max.experimental.tensor import Tensor
from max.graph import Dim

from max_zimage.graphs.dims import CAPTION_PADDED

_HALF = "group_items"


class Place(NamedTuple):
    """A device's place in the mesh.

    Attributes:
        group: Its group.
        groups: How many there are.
        part: Which part of the tokens it has.
        parts: How many there are.
    """

    group: int
    groups: int
    part: int
    parts: int


def each(mesh: DeviceMesh, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of tensors of one device, on every device of a mesh."""
    return F.call_on_mesh(function, mesh)


def spread(x: Tensor, mesh: DeviceMesh) -> Tensor:
    """A copy on every device of a mesh."""
    return F.transfer_to(x, DeviceMapping(mesh, (Replicated(),) * mesh.ndim))


def home(x: Tensor) -> Tensor:
    """What the first device has."""
    return x.local_shards[0]


def positions(place: Place, image: Dim, tokens: Dim, device: Device) -> Tensor:
    """Where a device's tokens stand in [image, caption], int32 [part].

    Args:
        place: The device's.
        image: Image tokens.
        tokens: All tokens.
        device: Where the result is.
    """
    position = F.range(0, tokens, 1, out_dim=tokens, dtype=DType.int32, device=device)
    both = (position[:image], F.rebind(position[image:], [CAPTION_PADDED]))
    return F.concat([cut(each, 0, place.part, place.parts) for each in both], axis=0)


def joined(image: Tensor, caption: Tensor) -> Tensor:
    """A device's image tokens with its caption tokens behind: [items, part, ...]."""
    return F.concat([image, caption], axis=1)


def rows_of(place: Place, x: Tensor, axis: int = 0) -> Tensor:
    """The branch rows of the device's group."""
    if place.groups == 1:
        return x
    items = x.shape[axis]
    start = (items - half(items)) * place.group
    found = x[(*(slice(None),) * axis, slice(start, start + half(items)))]
    return F.rebind(found, [*x.shape[:axis], _HALF, *x.shape[axis + 1 :]])


def half(items: Dim) -> Dim:
    """Rows of each of two groups."""
    return (items + 1) // 2


def part(place: Place, x: Tensor) -> Tensor:
    """The device's part of tokens, [items, tokens, ...]."""
    return cut(x, 1, place.part, place.parts)


def cut(x: Tensor, axis: int, part: int, parts: int) -> Tensor:
    """One of so many parts of nearly equal length."""
    length = x.shape[axis]
    return x[(*(slice(None),) * axis, slice(length * part // parts, length * (part + 1) // parts))]
