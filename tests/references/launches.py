"""What every graph of the published models launches on sm_90a, as text in a file that tests compare with.

    PYTHONPATH=tests python -m references.launches              all graphs anew, five minutes
    PYTHONPATH=tests python -m references.launches denoise      those that a change is about

No GPU is needed for either.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from max_zimage.cli_compile import listing
from max_zimage.targets import FULL_MODEL, GRAPHS, check_graphs, compile_target

LAUNCHES = Path(__file__).with_name("launches-sm_90a.txt")
"""What `max-zimage compile --target cuda:sm_90a --list-kernels` says."""


def sections() -> dict[str, str]:
    """The text of each graph."""
    texts = LAUNCHES.read_text().strip().split("\n\n")
    return {text.removeprefix("# ").partition(":")[0]: text for text in texts}


def main(names: Sequence[str]) -> int:
    """List graphs, and put what is said of them in the place of what was said before."""
    texts = sections()
    for report in compile_target(FULL_MODEL, "cuda:sm_90a", "bfloat16", check_graphs(names), list_kernels=True):
        if report.error is not None:
            print(listing(report), file=sys.stderr)
            return 1
        texts[report.graph] = listing(report)
        print(texts[report.graph].partition("\n")[0], flush=True)
        LAUNCHES.write_text("\n\n".join(texts[graph] for graph in GRAPHS if graph in texts) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
