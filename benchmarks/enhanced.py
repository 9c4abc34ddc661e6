"""Pictures of short prompts, with the embedded enhancer and without: how often they show what was asked for.

    python -m benchmarks.enhanced

Prompts are those of `benchmarks.training.text.evaluation`, always the same; a program reads colours, shapes, sizes and
places back. What was not said may be anything.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import permutations
from math import sqrt
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.measure import RESULTS, Conditions
from benchmarks.training.text.evaluation import KINDS, prompts_of
from benchmarks.training.text.wishes import Look, Wish
from max_zimage import ZImagePipeline
from max_zimage.enhancer.opening import open_enhancer
from tests.references.scenes import SIZES, SeenObject, recognize_all, render

SAME_SIZE = 1.18
"""How much wider or narrower than painted: sizes with different words are a factor of 1.37 or more apart."""
ASKED = {"height": 128, "width": 128, "num_inference_steps": 8, "guidance_scale": 2.0}
FILE = RESULTS / "enhanced.csv"
_COUNTS = ("prompts", "enhanced", "plain")
_ALONG = {"to the left of": 0, "above": 1}


@dataclass(frozen=True, kw_only=True)
class Share:
    """What became of the prompts of one kind.

    Attributes:
        kind: Its name.
        prompts: How many.
        enhanced: Pictures that show what was asked for, of prompts that were written out.
        plain: The same of prompts as they were given.
        seconds: That a prompt took to be written out, on average.
    """

    kind: str
    prompts: int
    enhanced: int
    plain: int
    seconds: float


def shows(asked: Wish, picture: npt.NDArray[np.uint8]) -> bool:
    """Whether a picture, uint8 [height, width, 3], shows all that was asked for, and as many objects."""
    seen, ground = recognize_all(picture)
    if asked.ground not in (None, ground):
        return False
    if not asked.objects:
        return bool(seen)
    return len(seen) == len(asked.objects) and any(_fits(asked, each, ground) for each in permutations(seen))


def _fits(asked: Wish, seen: Sequence[SeenObject], ground: str) -> bool:
    if not all(_is(look, each, ground) for look, each in zip(asked.objects, seen, strict=True)):
        return False
    along = _ALONG.get(asked.relation or "")
    return along is None or seen[0].place[along] < seen[1].place[along]


def _is(look: Look, seen: SeenObject, ground: str) -> bool:
    if look.color not in (None, seen.color) or look.shape not in (None, seen.shape):
        return False
    if look.size is None:
        return True
    painted, _ = recognize_all(render([(seen.color, seen.shape, (0.5, 0.5), SIZES[look.size])], ground))
    ratio = sqrt(seen.area / painted[0].area) if painted else 0.0
    return 1 / SAME_SIZE <= ratio <= SAME_SIZE


def measured(count: int) -> list[Share]:
    """Draw the prompts of every kind but those that ask for nothing."""
    pipeline, enhancer = ZImagePipeline.from_pretrained(device="cpu"), open_enhancer("embedded", is_embedded=True)
    enhancer.load()
    found = []
    for kind in KINDS[:-1]:
        right, seconds = {True: 0, False: 0}, 0.0
        for seed, (prompt, asked) in enumerate(prompts_of(kind, count)):
            begin = time.perf_counter()
            written = enhancer.enhance(prompt, seed=seed).text
            seconds += time.perf_counter() - begin
            for is_enhanced, text in ((True, written), (False, prompt)):
                picture = pipeline(text, seed=seed, output_type="np", **ASKED)  # type: ignore[arg-type]
                right[is_enhanced] += shows(asked, np.asarray(picture[0]))
        found.append(
            Share(kind=kind.name, prompts=count, enhanced=right[True], plain=right[False], seconds=seconds / count)
        )
        print(told(found[-1]), flush=True)
    return found


def told(share: Share) -> str:
    """A row of the table in docs/enhance.md."""
    parts = [f"{100 * each / share.prompts:.1f} %" for each in (share.enhanced, share.plain)]
    return f"| {share.kind} | {share.prompts} | {parts[0]} | {parts[1]} | {share.seconds:.2f} |"


def together(shares: Sequence[Share]) -> Share:
    """All kinds as one."""
    prompts, enhanced, plain = (sum(getattr(each, name) for each in shares) for name in _COUNTS)
    seconds = sum(each.seconds * each.prompts for each in shares) / prompts
    return Share(kind="all", prompts=prompts, enhanced=enhanced, plain=plain, seconds=seconds)


def save(shares: Sequence[Share], file: Path = FILE) -> None:
    """Write them, with what computed them, as CSV."""
    around = {name: getattr(Conditions.now(), name) for name in ("cpu", "date", "commit", "max")}
    with file.open("w", newline="", encoding="utf-8") as target:
        lines = [asdict(each) | {"seconds": f"{each.seconds:.3g}"} | around for each in shares]
        writer = csv.DictWriter(target, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def kept(file: Path = FILE) -> list[Share]:
    """What was written."""
    with file.open(newline="", encoding="utf-8") as source:
        return [
            Share(kind=line["kind"], seconds=float(line["seconds"]), **{name: int(line[name]) for name in _COUNTS})
            for line in csv.DictReader(source)
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="prompts of each kind (default 100)")
    count = parser.parse_args().count
    print("| prompts | how many | written out | as given | seconds a prompt |\n|---|---|---|---|---|")
    found = measured(count)
    save(found)
    print(told(together(found)))


if __name__ == "__main__":
    main()
