"""Train the embedded model from nothing, or score a checkpoint: `make embedded-model ARGS="train DIR"`.

Training goes on where an earlier run in the same folder was stopped. It takes an hour and a half on two cores that
multiply bfloat16 in tiles (AMX), minutes on a GPU; scoring is done on the CPU. Every random number is drawn from fixed
seeds. MAX is needed only where the engine draws.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OTEL_SDK_DISABLED", "true")

from benchmarks.measure import RESULTS
from max_zimage import embedded

_SHIPPED = embedded.PATH
_SETTINGS = "settings.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Train or score; 2 if it cannot be done as asked."""
    options = _parse(arguments)
    try:
        if "engine" in options.competitors and find_spec("max") is None:
            raise ValueError("the engine needs MAX, which is not installed; ask for --competitors diffusers")
        if options.task == "train":
            _train(options)
        else:
            shipped = options.model.resolve() == _SHIPPED.resolve()
            results = options.results or (RESULTS / "embedded_model.csv" if shipped else None)
            _evaluate(options.model, options.count, options.competitors, results, options.sheets)
    except (ValueError, OSError) as error:
        print(f"embedded_model: error: {error}", file=sys.stderr)
        return 2
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    tasks = parser.add_subparsers(dest="task", required=True)
    train = tasks.add_parser("train", help=f"train in a folder; the checkpoint is {embedded.NAME} in it")
    train.add_argument("directory", type=Path, metavar="DIR", help="for all that is made; made if it is not there")
    train.add_argument("--share", type=float, default=1.0, help="of pictures and steps, to see it run (default 1)")
    train.add_argument(
        "--device", default="cpu", choices=["cpu", "cuda"], help="where to train; scores are of the CPU (default cpu)"
    )
    train.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of the CPU, in training (default all)")
    score = tasks.add_parser("evaluate", help="draw scenes that training never showed, and read them back")
    score.add_argument("model", type=Path, metavar="MODEL", help="a checkpoint in the layout of diffusers")
    score.add_argument(
        "--results",
        type=Path,
        metavar="FILE",
        help="CSV file to write (default: that of the results' page, of the shipped model only)",
    )
    score.add_argument("--sheets", type=Path, metavar="DIR", help="also write sheets of the pictures there")
    for task, competitors in ((train, ["diffusers"]), (score, ["diffusers", "engine"])):
        task.add_argument(
            "--count",
            type=int,
            default=200,
            help="pictures to score in each setting without guidance, and half as many with it (default 200)",
        )
        task.add_argument(
            "--competitors",
            nargs="+",
            choices=["diffusers", "engine"],
            default=competitors,
            help=f"who draws what is scored (default {' and '.join(competitors)})",
        )
    options = parser.parse_args(arguments)
    if options.count < 1:
        parser.error(f"--count must be at least 1, got {options.count}")
    if options.task == "train" and not 0 < options.share <= 1:
        parser.error(f"--share must be above 0 and at most 1, got {options.share:g}")
    if options.task == "train" and options.threads < 1:
        parser.error(f"--threads must be at least 1, got {options.threads}")
    return options


def _train(options: argparse.Namespace) -> None:
    import torch

    from benchmarks.training.card import SHEETS, write_card
    from benchmarks.training.pictures import fingerprint
    from benchmarks.training.recipe import train

    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda needs a GPU and a PyTorch built for it, found none; leave it out for the CPU")
    _same_settings(options.directory, {"share": options.share, "scenes": fingerprint()})
    checkpoint = options.directory / embedded.NAME
    begin = time.monotonic()
    train(options.directory, checkpoint, share=options.share, device=options.device, threads=options.threads)
    trained = time.monotonic()
    results = options.directory / "embedded_model.csv"
    _evaluate(checkpoint, options.count, options.competitors, results, options.directory / SHEETS)
    write_card(checkpoint, results, options.directory, options.share)
    end = time.monotonic()
    print(f"{checkpoint}: done; this run took {end - begin:.0f} s, {end - trained:.0f} of them for scores and card")


def _same_settings(directory: Path, settings: dict[str, float]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / _SETTINGS
    if not file.exists():
        file.write_text(json.dumps(settings), encoding="utf-8")
    before = json.loads(file.read_text(encoding="utf-8"))
    if before != settings:
        raise ValueError(f"{directory} holds a training of {before}, asked for is {settings}; name another folder")


def _evaluate(model: Path, count: int, competitors: Sequence[str], results: Path | None, sheets: Path | None) -> None:
    from benchmarks.measure import Conditions, table, write_csv
    from benchmarks.training import evaluation
    from benchmarks.training.sheets import sheet, sheet_name

    if not (model / "model_index.json").exists():
        raise ValueError(f"MODEL must be a checkpoint in the layout of diffusers, {model} has no model_index.json")
    conditions = Conditions.now()
    makers = {"diffusers": evaluation.with_diffusers, "engine": evaluation.with_engine}
    rows = [evaluation.autoencoder_row(model, count)]
    scored, pictures = evaluation.evaluate(
        {name: make(model) for name, make in makers.items() if name in competitors}, count
    )
    rows += scored
    print(table(rows, conditions), flush=True)
    if results is not None:
        write_csv(results, rows, conditions)
        print(f"-> {results}", flush=True)
    if sheets is not None:
        sheets.mkdir(parents=True, exist_ok=True)
        for name, some in pictures.items():
            sheet(some[:16], 8).save(sheets / sheet_name(name))


if __name__ == "__main__":
    sys.exit(main())
