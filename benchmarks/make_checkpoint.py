"""Write a random Z-Image checkpoint of any size: `python -m benchmarks.make_checkpoint DIR [--size full]`.

The folder looks like that of Tongyi-MAI/Z-Image, or with --turbo of Tongyi-MAI/Z-Image-Turbo: the same files, names and
shapes, with random numbers in them. Its pictures are noise; what it costs to make them is what the real ones cost.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.checkpoints.shapes import SIZES, Size, configs, model_index, size_of
from benchmarks.checkpoints.tokenizer import write_tokenizer
from benchmarks.checkpoints.weights import nbytes, split, tensors, weight_files, write_component
from max_zimage.checkpoint.locate import COMPONENTS, CONFIG_FILES
from max_zimage.cli.console import display
from max_zimage.device.dtypes import DTYPES, ModelDtype
from max_zimage.progress import shown_by

_INDEX = "model_index.json"
_BESIDES = 32 << 20  # headers, tokenizer and configurations, generously
SHARD_GB = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a checkpoint; 2 if it cannot be written as asked."""
    options = _parse(arguments)
    begin = time.monotonic()
    try:
        size = size_of(options.size, layers=options.layers, text_layers=options.text_layers, turbo=options.turbo)
        with shown_by(display(quiet=options.quiet)):
            said = write_checkpoint(
                options.directory,
                size,
                dtype=options.dtype,
                seed=options.seed,
                shard_gb=options.shard_gb,
                force=options.force,
            )
    except (ValueError, OSError) as error:
        print(f"make_checkpoint: error: {error}", file=sys.stderr)
        return 2
    print(f"{options.directory}: {said}, in {time.monotonic() - begin:.0f} s")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.make_checkpoint", description=__doc__)
    parser.add_argument("directory", type=Path, metavar="DIR", help="where to; made if it is not there")
    parser.add_argument("--size", default="full", help=f"one of {', '.join(SIZES)} (default full)")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of the weights (default bfloat16)")
    parser.add_argument("--layers", type=int, metavar="N", help="main layers of the transformer")
    parser.add_argument("--text-layers", type=int, metavar="N", help="layers of the text encoder, at least 2")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the numbers (default 0)")
    parser.add_argument("--turbo", action="store_true", help="with the schedule of Z-Image-Turbo: shift 3, not 6")
    parser.add_argument("--shard-gb", type=float, default=SHARD_GB, metavar="GB", help="most a file holds (default 5)")
    parser.add_argument("--force", action="store_true", help="replace the weights that are in the folder")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    return parser.parse_args(arguments)


def write_checkpoint(
    directory: Path,
    size: Size,
    *,
    dtype: ModelDtype,
    seed: int | None = 0,
    shard_gb: float = SHARD_GB,
    force: bool = False,
    threads: int | None = None,
) -> str:
    """Write a checkpoint, `model_index.json` last: without it nothing loads the folder.

    Args:
        directory: Where to; a new or an empty folder unless forced.
        size: Its shapes.
        dtype: Of the weights.
        seed: Of the numbers; the same one makes the same bytes. None for zeros, which take no room on the disk.
        shard_gb: Most 10^9 bytes of tensors in a file.
        force: Whether weights in the folder are replaced. Other files than a checkpoint's stay as they are.
        threads: How many make numbers; None for one a core.

    Returns:
        What was written, in words.

    Raises:
        ValueError: If an argument is out of range, the folder is not empty or the disk has no room; said before
            anything is written.
        OSError: If a file cannot be written.
    """
    if shard_gb <= 0:
        raise ValueError(f"a shard must hold more than 0 GB, got {shard_gb:g}")
    if seed is not None and seed < 0:
        raise ValueError(f"the seed must be 0 or more, got {seed}")
    _check_folder(directory, force)
    shapes = tensors(size.specs)
    folders = [directory / component for component in COMPONENTS]
    needed = 0 if seed is None else nbytes(shapes, dtype)
    _check_room(directory, needed + _BESIDES, weight_files(folders))

    directory.mkdir(parents=True, exist_ok=True)
    for old in (directory / _INDEX, *weight_files(folders)):
        old.unlink(missing_ok=True)
    tokenizer_class, tokenizer = write_tokenizer(directory / "tokenizer", size.specs.text_encoder.vocab_size)
    for component, config in configs(size, dtype).items():
        (directory / component).mkdir(exist_ok=True)
        _write_json(directory / component / CONFIG_FILES[component], config)
    for component in COMPONENTS:
        files = split(component, shapes[component], dtype, int(shard_gb * 1e9))
        write_component(directory / component, files, dtype, seed, threads or os.cpu_count() or 1)
    _write_json(directory / _INDEX, model_index(tokenizer_class))
    weights = "zeros" if seed is None else "random weights"
    return f"{nbytes(shapes, dtype) / 1e9:.2f} GB of {weights} in {dtype}, {tokenizer}"


def _check_folder(directory: Path, force: bool) -> None:
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"{directory} is a file; name a folder")
    if not force and directory.is_dir() and any(directory.iterdir()):
        raise ValueError(f"{directory} is not empty; name a new folder, or use --force to replace the weights in it")


def _check_room(directory: Path, needed: int, replaced: Sequence[Path]) -> None:
    existing = next(folder for folder in (directory, *directory.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free + sum(file.stat().st_size for file in replaced)
    if needed > free:
        raise ValueError(
            f"the checkpoint needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free at {existing}; free some, use "
            "bfloat16, fewer layers, or another disk"
        )


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
