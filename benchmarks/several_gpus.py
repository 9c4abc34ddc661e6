"""What one picture on several GPUs sends between them and launches, from graphs made for GPUs that need not be there.

    python -m benchmarks.several_gpus          writes the table of docs/several-gpus.md; some minutes

The speed in the table is no measurement: it follows from the seconds of one GPU, which all share evenly, and from the
bytes, which go one after the other and beside no work.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.measure import ROOT
from max_zimage.compile.ahead_of_time import FULL_MODEL, check_mesh, compile_target
from max_zimage.compile.jobs import Report
from max_zimage.compile.sent import nbytes_by_device, sizes_of

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


def main() -> int:
    """Write the table."""
    lines = ["| GPUs | share | branches | launches | GB each GPU sends | of that gathered | NVLink | PCIe |"]
    lines.append("| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    lines += rows()
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(_MARKED.sub(lambda found: found[1] + "\n".join(lines) + "\n" + found[3], text), encoding="utf-8")
    return 0


def rows() -> Iterator[str]:
    """One line a case."""
    reports: dict[tuple[int, str], Report] = {}
    for case in CASES:
        mesh = check_mesh(case.devices, case.split, TARGET)
        if (case.devices, case.split) not in reports:
            graphs = ("denoise_meshed",)
            (found,) = compile_target(FULL_MODEL, TARGET, "bfloat16", graphs, list_kernels=True, mesh=mesh)
            if found.error is not None or found.kernels is None:
                raise RuntimeError(f"{case}: {found.error}; see {found.log}")
            reports[case.devices, case.split] = found
        report = reports[case.devices, case.split]
        assert report.kernels is not None
        sizes = sizes_of(mesh, items=case.items, image=4096, caption=32)
        sent = max(nbytes_by_device(report.sent, sizes).values())
        gathered = max(nbytes_by_device([each for each in report.sent if each.gathered], sizes).values(), default=0)
        times = [f"{speedup(case, sent, bandwidth):.2f}" for bandwidth in (NVLINK, PCIE)]
        cells = [case.devices, case.split, case.items, report.kernels.total, f"{sent / 1e9:.3f}"]
        yield f"| {' | '.join(map(str, [*cells, f'{gathered / 1e9:.3f}', *times]))} |"
        print(case, file=sys.stderr, flush=True)


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
