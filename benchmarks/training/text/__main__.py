"""Train the embedded text model from nothing, or score a checkpoint: `make text-model ARGS="train DIR"`.

Training goes on where an earlier run in the same folder was stopped. Every random number is drawn from fixed seeds. MAX
is needed only where the engine writes.
"""

from __future__ import annotations

import argparse
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

WRITERS = ("transformers", "engine")


def main(arguments: Sequence[str] | None = None) -> int:
    """Train or score; 2 if it cannot be done as asked."""
    options = _parse(arguments)
    try:
        if "engine" in options.writers and find_spec("max") is None:
            raise ValueError("the engine needs MAX, which is not installed; ask for --writers transformers")
        if options.task == "train":
            _train(options)
        else:
            shipped = options.model.resolve() == embedded.TEXT_PATH.resolve()
            results = options.results or (RESULTS / "text_model.csv" if shipped else None)
            _evaluate(options.model, options.count, options.writers, results)
    except (ValueError, OSError) as error:
        print(f"text_model: error: {error}", file=sys.stderr)
        return 2
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training.text", description=__doc__)
    tasks = parser.add_subparsers(dest="task", required=True)
    train = tasks.add_parser("train", help=f"train in a folder; the checkpoint is {embedded.TEXT_NAME} in it")
    train.add_argument("directory", type=Path, metavar="DIR", help="for all that is made; made if it is not there")
    train.add_argument("--share", type=float, default=1.0, help="of the steps, to see it run (default 1)")
    train.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of the CPU (default all)")
    train.add_argument(
        "--eager", action="store_true", help="compile nothing: for a few steps, or where no C++ compiler is"
    )
    score = tasks.add_parser("evaluate", help="write for prompts of all kinds, and read what was written")
    score.add_argument("model", type=Path, metavar="MODEL", help="a checkpoint in the layout of transformers")
    score.add_argument(
        "--results",
        type=Path,
        metavar="FILE",
        help="CSV file to write (default: that of the shipped model's results, of the shipped model only)",
    )
    for task, writers in ((train, ["transformers"]), (score, list(WRITERS))):
        task.add_argument("--count", type=int, default=500, help="prompts of each kind (default 500)")
        task.add_argument(
            "--writers", nargs="+", choices=WRITERS, default=writers, help=f"default {' and '.join(writers)}"
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
    from benchmarks.training.recipe import scaled
    from benchmarks.training.text import recipe
    from benchmarks.training.text.card import EXAMPLES, write_card
    from benchmarks.training.text.evaluation import FIRST_SEED, with_transformers

    begin = time.monotonic()
    plans = [scaled(plan, options.share) for plan in recipe.PLANS]
    checkpoint = recipe.train(options.directory, plans, options.threads, is_compiled=not options.eager)
    trained = time.monotonic()
    results = options.directory / "text_model.csv"
    _evaluate(checkpoint, options.count, options.writers, results)
    captions = [text for text, _ in with_transformers(checkpoint)(EXAMPLES, FIRST_SEED)]
    write_card(checkpoint, results, plans, captions)
    end = time.monotonic()
    print(f"{checkpoint}: done; this run took {end - begin:.0f} s, {end - trained:.0f} of them for scores and card")


def _evaluate(model: Path, count: int, writers: Sequence[str], results: Path | None) -> None:
    from benchmarks.training.text import evaluation

    if not (model / "config.json").exists():
        raise ValueError(f"MODEL must be a checkpoint in the layout of transformers, {model} has no config.json")
    makers = {"transformers": evaluation.with_transformers, "engine": evaluation.with_engine}
    scores = []
    for name in writers:
        write = makers[name](model)
        for kind in evaluation.KINDS:
            scores.append(evaluation.scored(kind, name, write, count))
            print(evaluation.told(scores[-1]), flush=True)
    if results is not None:
        evaluation.save(results, scores)
        print(f"-> {results}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
