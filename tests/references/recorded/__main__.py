"""Record the requests on this processor; see the package's text."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from max_zimage import ZImagePipeline
from tests.references import recorded
from tests.references.diffusers_runs import relative_l2
from tests.references.recorded import Drawn
from tests.tolerances import RECORDED_L2


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw all, look at what is there, write."""
    parser = argparse.ArgumentParser(prog="python -m tests.references.recorded", description=__doc__)
    parser.add_argument("--anew", action="store_true", help="drop what is recorded, on every processor")
    anew = parser.parse_args(arguments).anew or not recorded.DIGESTS.exists()
    pipeline = ZImagePipeline.from_pretrained(device="cpu", dtype="float32")
    drawn = {name: recorded.draw(pipeline, name) for name in recorded.REQUESTS}
    if not anew:
        others = {name: relative_l2(each.latents, recorded.recorded_latents(name)) for name, each in drawn.items()}
        if far := {name: distance for name, distance in others.items() if not distance <= RECORDED_L2}:
            print(f"not recorded: further than {RECORDED_L2} from what is there: {far}", file=sys.stderr)
            return 1
    write(drawn, anew=anew)
    return 0


def write(drawn: dict[str, Drawn], *, anew: bool) -> None:
    """Add this processor's digests, or write its digests and latents alone."""
    here = recorded.processor()
    kept = [] if anew else [entry for entry in recorded.recorded_digests() if entry["processor"] != here]
    entries = [*kept, {"processor": here, "digests": {name: each.digests for name, each in drawn.items()}}]
    recorded.DIGESTS.write_text(json.dumps(entries, indent=1) + "\n")
    if anew:
        arrays: dict[str, Any] = {name: each.latents for name, each in drawn.items()}
        np.savez_compressed(recorded.LATENTS, **arrays)


if __name__ == "__main__":
    sys.exit(main())
