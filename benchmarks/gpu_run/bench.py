"""What all parts share: the device, how calls are timed there, and what one part has loaded for the next."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from max.driver import CPU, Accelerator, Buffer, Device, accelerator_count
from max.dtype import DType
from max.engine import InferenceSession

from benchmarks.block import FULL, Shape
from benchmarks.measure import Timing, ask
from max_zimage.device.devices import upload
from max_zimage.device.dtypes import ModelDtype
from max_zimage.device.libraries import check_libraries

Made = TypeVar("Made")

PUBLISHED = Shape(dim=FULL.dim, num_heads=FULL.num_heads, ffn_dim=FULL.ffn_dim, tokens=4160, norm_eps=FULL.norm_eps)
"""A block of the published models, with the tokens of a picture of 1024x1024 and a caption of up to 64."""
SMALL = Shape(dim=768, num_heads=6, ffn_dim=2048, tokens=64, norm_eps=1e-5)


class Bench:
    """A device and what is on it.

    Args:
        work: Folder of what is kept between steps.
        small: Whether sizes are small and everything runs on the CPU.
        known: Gives the rows that are known so far, of the same commit, card and sizes.
    """

    def __init__(self, *, work: Path, small: bool, known: Callable[[], list[dict[str, str]]] = list) -> None:
        self.work, self.small, self._known = work, small, known
        self._made: dict[str, Any] = {}
        torch.set_grad_enabled(False)

    @property
    def dtype(self) -> ModelDtype:
        """Of weights and computation."""
        return "float32" if self.small else "bfloat16"

    @property
    def max_dtype(self) -> DType:
        """The same in MAX's words."""
        return DType[self.dtype]

    @property
    def torch_dtype(self) -> torch.dtype:
        """The same in torch's words."""
        return torch.float32 if self.small else torch.bfloat16

    @cached_property
    def device(self) -> Device:
        """Where graphs run.

        Raises:
            ValueError: If there is no GPU and sizes are not small, or a library is missing that graphs call.
        """
        if self.small:
            return CPU()
        if not accelerator_count():
            raise ValueError("there is no accelerator here; --small runs everything on the CPU with small sizes")
        device = Accelerator()
        check_libraries(device)
        return device

    @cached_property
    def torch_device(self) -> torch.device:
        """The same for torch."""
        return torch.device("cpu" if self.small else "cuda")

    @cached_property
    def session(self) -> InferenceSession:
        """Of this device."""
        return InferenceSession(devices=[self.device])

    @property
    def shape(self) -> Shape:
        """Of a block."""
        return SMALL if self.small else PUBLISHED

    def once(self, name: str, make: Callable[[], Made]) -> Made:
        """Make something for this and the following parts of the process."""
        if name not in self._made:
            self._made[name] = make()
        found: Made = self._made[name]
        return found

    def drop(self, *names: str) -> None:
        """Forget what `once` has made."""
        for name in names:
            self._made.pop(name, None)

    def synchronize(self) -> None:
        """Wait for MAX's and torch's work."""
        self.device.synchronize()
        if not self.small:
            torch.cuda.synchronize()

    def answers(self) -> bool:
        """Whether the device still does what it is told, after something has failed."""
        try:
            total = torch.ones(1000, device=self.torch_device).sum().item()
            self.synchronize()
            return (
                total == 1000.0 and float(upload(np.ones(3, np.float32), self.device).to(CPU()).to_numpy().sum()) == 3
            )
        except Exception:  # an error of the device that stays until the process ends
            return False

    def timed(
        self, calls: Mapping[str, Callable[[], object]], *, samples: int = 10, per_sample: int = 20
    ) -> dict[str, Timing]:
        """Time competitors in turn, several calls at a time, so that launches overlap as they do in a step.

        Args:
            calls: By name.
            samples: Timings of each.
            per_sample: Calls in a timing.

        Returns:
            Seconds of one call for each name.
        """
        samples, per_sample = (2, 1) if self.small else (samples, per_sample)
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for call in calls.values():
            for _ in range(1 if self.small else 3):
                call()
        for _ in range(samples):
            for name, call in calls.items():
                self.synchronize()
                begin = time.perf_counter()
                for _ in range(per_sample):
                    call()
                self.synchronize()
                seconds[name].append((time.perf_counter() - begin) / per_sample)
        return {name: Timing.of(taken) for name, taken in seconds.items()}

    def seconds_before(self, case: str, variant: str) -> float | None:
        """What a row says that an earlier step has written; None if there is none."""
        found = [line["median_s"] for line in self._known() if (line["case"], line["variant"]) == (case, variant)]
        return float(found[-1]) if found and found[-1] else None

    def upload(self, tensor: torch.Tensor) -> Buffer:
        """A torch tensor as an argument of a graph: float32 and bfloat16 as they are, integers too."""
        return host_buffer(tensor).to(self.device)

    def integers(self, values: Sequence[int]) -> Buffer:
        """Lengths or offsets, uint32."""
        return upload(np.array(values, np.uint32), self.device)

    def download(self, buffer: Buffer) -> torch.Tensor:
        """What a graph has made, for torch on its device."""
        host = buffer.to(CPU())
        if buffer.dtype == DType.bfloat16:
            bits = torch.from_numpy(host.view(DType.uint16, buffer.shape).to_numpy().copy().view(np.int16))
            return bits.view(torch.bfloat16).to(self.torch_device)
        return torch.from_numpy(host.to_numpy().copy()).to(self.torch_device)

    def used_mib(self) -> float:
        """Memory in use now: of the GPU by everything on it, or this process' largest on a CPU."""
        if not self.small:
            said = ask("nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits")
            return max((float(line) for line in said.splitlines()), default=0.0)
        status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(float(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))


def host_buffer(tensor: torch.Tensor) -> Buffer:
    """A torch tensor in host memory for MAX."""
    tensor = tensor.contiguous().cpu()
    if tensor.dtype != torch.bfloat16:
        return Buffer.from_numpy(tensor.numpy().copy())
    bits = tensor.reshape(-1).view(torch.int16).numpy().view(np.uint16).copy()
    return Buffer.from_numpy(bits).view(DType.bfloat16, tuple(tensor.shape))


def poison(bench: Bench, shapes: Sequence[Sequence[int]], dtype: torch.dtype) -> None:
    """Fill memory that is about to be given to results with not-a-number, so that what is not written is seen.

    MAX gives freed memory of the same size out again first. What PyTorch holds and does not use is given back before.
    """
    if not bench.small:
        torch.cuda.empty_cache()
    filled = [bench.upload(torch.full(tuple(shape), float("nan"), dtype=dtype)) for shape in shapes for _ in range(2)]
    bench.synchronize()
    filled.clear()
