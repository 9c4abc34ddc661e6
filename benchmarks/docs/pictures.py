"""Pictures of docs/, drawn again from the commands beside them: `python -m benchmarks.docs.pictures [SHEET ...]`.

A sheet is a list of commands of `max-zimage generate`. Its pictures stand beside each other in docs/SHEET.webp, and its
commands in the page between two markers. They run in one process and one folder, so that one may begin with what
another drew. A test holds the commands of the pages equal to those of `benchmarks.docs.sheets`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import tempfile
import warnings
from collections.abc import Sequence

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
from PIL import Image

from benchmarks.docs.sheets import MASK_BOX, MASK_FILE, SHEETS, Sheet, rendered
from benchmarks.measure import ROOT
from max_zimage import ZImagePipeline
from max_zimage.cli import main as command_line
from max_zimage.cli.field_flags import with_values
from max_zimage.cli.options import GenerateOptions

DOCS = ROOT / "docs"
_GAP = 4
_QUALITY = 88
_WHITE = (255, 255, 255)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw, and write the commands into their pages."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.docs.pictures", description=__doc__)
    parser.add_argument("sheets", nargs="*", metavar="SHEET", help=f"any of {', '.join(SHEETS)}; none for all")
    parser.add_argument("--words", action="store_true", help="write the commands into the pages, and draw nothing")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.sheets if name not in SHEETS]
    if unknown:
        parser.error(f"unknown sheet {', '.join(unknown)}; there are {', '.join(SHEETS)}")
    chosen = options.sheets or list(SHEETS)
    if not options.words:
        pipeline = ZImagePipeline.from_pretrained(device="cpu", dtype="float32")
        for name in chosen:
            draw(pipeline, SHEETS[name]).save(DOCS / f"{name}.webp", quality=_QUALITY, method=6)
            print(DOCS / f"{name}.webp", flush=True)
    for page in sorted({SHEETS[name].page for name in chosen}):
        file = DOCS / page
        file.write_text(rendered(file.read_text(encoding="utf-8"), page), encoding="utf-8")
    return 0


def draw(pipeline: ZImagePipeline, sheet: Sheet) -> Image.Image:
    """The pictures of a sheet beside each other.

    Args:
        pipeline: The embedded model in float32.
        sheet: What to draw.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        mask = Image.new("L", (128, 128))
        mask.paste(255, MASK_BOX)
        mask.save(MASK_FILE)
        for command in sheet.commands:
            _run(pipeline, command)
        return beside([Image.open(name).convert("RGB") for name in sheet.files], sheet.columns)


def _run(pipeline: ZImagePipeline, command: str) -> None:
    """What the command line does with such words, without loading a model again."""
    parsed = command_line._parser().parse_args(with_values(["generate", *shlex.split(command)]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        request = GenerateOptions.of(parsed).request(pipeline.sources.limits, pipeline.sources.defaults)
    Image.fromarray(np.asarray(pipeline.generate(request))[0]).save(parsed.output)


def beside(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """Pictures in rows on white, each in the middle of a cell as large as the largest."""
    width = max(picture.width for picture in pictures)
    height = max(picture.height for picture in pictures)
    rows = -(-len(pictures) // columns)
    whole = Image.new("RGB", (columns * (width + _GAP) - _GAP, rows * (height + _GAP) - _GAP), _WHITE)
    for index, picture in enumerate(pictures):
        left = index % columns * (width + _GAP) + (width - picture.width) // 2
        top = index // columns * (height + _GAP) + (height - picture.height) // 2
        whole.paste(picture, (left, top))
    return whole


if __name__ == "__main__":
    raise SystemExit(main())
