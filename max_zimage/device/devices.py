"""Names of devices and dtypes as people write them, to what MAX takes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from max.driver import CPU, Buffer, Device, DeviceSpec, accelerator_count
from max.dtype import DType
from max.experimental.tensor import Tensor as EagerTensor

from max_zimage.device.dtypes import bfloat16_bits
from max_zimage.errors import RequestError
from max_zimage.host.processes import check_process

Tensor = Buffer | EagerTensor | npt.NDArray[Any]
"""What members that MAX documents take for a tensor."""

_ACCELERATOR = re.compile(r"(?:gpu|cuda|hip)(?::(\d+))?")


def device_spec(name: str, field: str = "device") -> DeviceSpec:
    """Find a device.

    Args:
        name: "auto" (the first accelerator, or else the CPU), "cpu", "gpu", or "gpu:1" and so on; "cuda" and "hip"
            stand for "gpu".
        field: What was set to it, for the error.

    Raises:
        RequestError: If the name is unknown or there is no such accelerator; lists what there is.
    """
    count = accelerator_count()
    if name == "cpu" or (name == "auto" and count == 0):
        return DeviceSpec.cpu()
    match = _ACCELERATOR.fullmatch("gpu" if name == "auto" else name)
    if match is None:
        message = '{field} must be "auto", "cpu", "gpu" or "gpu:N", got {given!r}; here there is {devices}'
        raise RequestError.of(field, message, given=name, devices=", ".join(device_names()))
    number = int(match[1] or 0)
    if number >= count:
        there = "no accelerator is" if count == 0 else f"only {count} accelerator{'s are' if count > 1 else ' is'}"
        message = "{field} {given!r} was asked for, and {there} available here; "
        message += "{say[cpu]}" if field == "device" else "here there is {devices}"
        raise RequestError.of(field, message, given=name, there=there, devices=", ".join(device_names()))
    return DeviceSpec.accelerator(number)


def device_names() -> list[str]:
    """The devices of this machine."""
    return ["cpu", *(f"gpu:{number}" for number in range(accelerator_count()))]


def device_name(device: Device | DeviceSpec) -> str:
    """A device as people write it, "cpu" or "gpu:N"."""
    if isinstance(device, DeviceSpec):
        return "cpu" if device.device_type == "cpu" else f"gpu:{device.id}"
    return "cpu" if device.is_host else f"gpu:{device.id}"


def moved(buffer: Buffer, device: Device) -> Buffer:
    """A buffer on a device: itself where it is there, or else a copy."""
    return buffer if buffer.device == device else buffer.to(device)


def device_kind(device: Device) -> str:
    """Return "cpu" or "gpu"."""
    return "cpu" if device.is_host else "gpu"


def upload(array: npt.NDArray[np.generic], device: Device) -> Buffer:
    """Copy a numpy array to a device, with its own dtype."""
    check_process()
    return Buffer.from_numpy(np.array(array, order="C")).to(device)


def as_buffer(value: Tensor) -> Buffer:
    """Take a tensor of MAX, numpy or another library that speaks DLPack for a buffer, where it lies.

    Raises:
        TypeError: If it is no tensor.
    """
    if isinstance(value, Buffer):
        return value
    if isinstance(value, EagerTensor):
        return value.driver_tensor
    if isinstance(value, np.ndarray):
        return Buffer.from_numpy(np.array(value, order="C"))
    try:
        return Buffer.from_dlpack(value)
    except (TypeError, AttributeError) as error:
        raise TypeError(f"a tensor is wanted, got {type(value).__name__}") from error


def upload_as(array: npt.NDArray[np.float32], dtype: Literal["float32", "bfloat16"], device: Device) -> Buffer:
    """Copy float32 numbers to a device in the model's dtype."""
    if dtype == "float32":
        return upload(array, device)
    return Buffer.from_numpy(bfloat16_bits(array)).view(DType.bfloat16, array.shape).to(device)


def download(buffer: Buffer) -> npt.NDArray[Any]:
    """Copy a buffer to the host; waits for the work that makes it. Not for bfloat16, which numpy does not know."""
    return buffer.to(CPU()).to_numpy()


def kept_rows(buffer: Buffer, rows: Sequence[int]) -> Buffer:
    """Some rows of a buffer, where it lies: a view of the first ones, or a copy on the same device.

    Args:
        buffer: [rows, ...].
        rows: Which ones, in the order they will have.
    """
    rest = (slice(None),) * (buffer.rank - 1)
    if list(rows) == list(range(len(rows))):
        return buffer[(slice(0, len(rows)), *rest)]
    made = Buffer.zeros((len(rows), *map(int, buffer.shape[1:])), buffer.dtype, buffer.device)
    for place, row in enumerate(rows):
        made[(slice(place, place + 1), *rest)].inplace_copy_from(buffer[(slice(row, row + 1), *rest)])
    finish_copies(made)
    return made


def joined(parts: Sequence[Buffer]) -> Buffer:
    """Buffers of one device behind each other, [rows, ...] each; the one there is, or a copy on the same device."""
    if len(parts) == 1:
        return parts[0]
    first, rest = parts[0], (slice(None),) * (parts[0].rank - 1)
    rows = [int(part.shape[0]) for part in parts]
    made = Buffer.zeros((sum(rows), *map(int, first.shape[1:])), first.dtype, first.device)
    for index, part in enumerate(parts):
        begin = sum(rows[:index])
        made[(slice(begin, begin + rows[index]), *rest)].inplace_copy_from(part)
    finish_copies(made)
    return made


def finish_copies(buffer: Buffer) -> None:
    """Wait for copies into a buffer of the host, which MAX makes later and without keeping what they read.

    An accelerator frees memory in the order of its work.
    """
    if buffer.device.is_host:
        buffer.device.synchronize()
