"""What one picture on several GPUs sends between them, from graphs made for GPUs that need not be there.

    python -m benchmarks.several_gpus          writes the table of docs/several-gpus.md, within a minute or two

The speed in the table is no measurement: it follows from the seconds of one GPU, which all share evenly, and from the
bytes, which go one after the other and beside no work.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from max.driver import (
    Accelerator,
    set_virtual_device_api,
    set_virtual_device_count,
    set_virtual_device_target_arch,
)
from max.graph import DeviceRef
from max.graph import Module as GraphModule

from benchmarks.measure import ROOT
from max_zimage.compile.ahead_of_time import FULL_MODEL, check_mesh
from max_zimage.compile.registry import Mesh, made
from max_zimage.compile.sent import Sent, nbytes_by_device, sent_in, sizes_of
from max_zimage.graphs.layers import text_of, trace

PAGE = ROOT / "docs" / "several-gpus.md"
TARGET = "cuda:sm_90a"
_MARKED = re.compile(r"(<!-- several-gpus -->\n)(.*?)(<!-- end -->)", re.DOTALL)

ROW_SECONDS = 0.1
"""An evaluation of one branch row of 1024x1024 pixels on one H100: 60 TFLOP at six tenths of its peak, derived."""
NVLINK, PCIE = 300e9, 25e9
"""Bytes a second that a GPU can send: of NVLink 4 two thirds of its 450 GB/s, of PCIe 4 four fifths of 32 GB/s."""


class Case(NamedTuple):
    """Devices, and what they draw.

    Attributes:
        devices: How many.
        split: What they share.
        items: Branch rows.
    """

    devices: int
    split: str
    items: int


CASES = (
    Case(2, "tokens", 1),
    Case(3, "tokens", 1),
    Case(4, "tokens", 1),
    Case(8, "tokens", 1),
    Case(2, "tokens", 2),
    Case(2, "branches", 2),
    Case(4, "tokens", 2),
    Case(4, "branches", 2),
    Case(8, "branches", 2),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the table, or say how the page differs from it; 1 if it does."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.several_gpus", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 where the page is out of date")
    options = parser.parse_args(arguments)
    api, architecture = TARGET.split(":")
    set_virtual_device_api(api)
    set_virtual_device_target_arch(architecture)
    set_virtual_device_count(max(case.devices for case in CASES))
    lines = ["| GPUs | share | branches | GB that a GPU sends | of that gathered | over NVLink | over PCIe |"]
    lines += ["| ---: | --- | ---: | ---: | ---: | ---: | ---: |", *rows()]
    before = PAGE.read_text(encoding="utf-8")
    text = _MARKED.sub(lambda found: found[1] + "\n".join(lines) + "\n" + found[3], before)
    if options.check:
        print("up to date" if text == before else f"{PAGE} is out of date; run: python -m benchmarks.several_gpus")
        return int(text != before)
    PAGE.write_text(text, encoding="utf-8")
    return 0


def rows() -> Iterator[str]:
    """One line a case."""
    traced: dict[Mesh, list[Sent]] = {}
    for case in CASES:
        mesh = check_mesh(case.devices, case.split, TARGET)
        traced[mesh] = sent = traced[mesh] if mesh in traced else sent_by(mesh)
        sizes = sizes_of(items=case.items, image=4096, caption=32)
        most = max(nbytes_by_device(sent, sizes).values())
        gathered = max(nbytes_by_device([each for each in sent if each.gathered], sizes).values(), default=0)
        cells = [case.devices, case.split, case.items, f"{most / 1e9:.3f}", f"{gathered / 1e9:.3f}"]
        cells += [f"{speedup(case, most, bandwidth):.2f}" for bandwidth in (NVLINK, PCIE)]
        yield f"| {' | '.join(map(str, cells))} |"


def sent_by(mesh: Mesh) -> list[Sent]:
    """What a step of the published transformer has devices send each other.

    Counted from three with one or two blocks of a kind: each further block sends what the second one does.
    """
    one, main, refiner = (sent_with(mesh, *layers) for layers in ((1, 1), (2, 1), (1, 2)))
    shape = FULL_MODEL.transformer
    times = {
        each: one[each]
        + (shape.num_layers - 1) * (main[each] - one[each])
        + (shape.num_refiner_layers - 1) * (refiner[each] - one[each])
        for each in (one | main | refiner)
    }
    # What has a row for each block is as often less than never in the size of the first as it is in the others'.
    return [replace(each, times=often) for each, often in times.items()]


def sent_with(mesh: Mesh, layers: int, refiners: int) -> Counter[Sent]:
    """The same of one with so many main blocks and refiner blocks: each tensor, and how often."""
    name, together = "denoise_meshed", GraphModule()
    shape = replace(FULL_MODEL.transformer, num_layers=layers, num_refiner_layers=refiners)
    specs = replace(FULL_MODEL, transformer=shape)
    module, types = made(name, specs, "bfloat16", DeviceRef.from_device(Accelerator()), mesh=mesh)
    trace(module, types, name, together)
    return Counter({replace(each, times=1): each.times for each in sent_in(text_of(together), name)})


def speedup(case: Case, sent: int, bandwidth: float) -> float:
    """How much sooner an evaluation is done than on one GPU; see above.

    Args:
        case: The devices.
        sent: Bytes that one of them sends.
        bandwidth: Bytes a second.
    """
    groups = 2 if case.split == "branches" else 1
    alone = ROW_SECONDS * case.items
    own = ROW_SECONDS * -(-case.items // groups) / (case.devices // groups)
    return alone / (own + sent / bandwidth)


if __name__ == "__main__":
    raise SystemExit(main())
