"""The quality table of step caches: `python -m benchmarks.quality [--quick] [--resume] [--steps N ...]`.

With `requests` as the first word: that of samplers, guidance, passes and tiles, see `benchmarks.quality.requests`.

Without a model: the embedded one, whose pictures can be checked, beside diffusers' hooks and cache-dit. With --model
any checkpoint: `--model PATH --output DIR --height 1024 --width 1024 --prompts FILE --steps 50 --guidance 4`. Nothing
is downloaded.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OTEL_SDK_DISABLED", "true")
os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "warning")

from benchmarks.measure import RESULTS, Conditions, table, write_csv
from benchmarks.quality import cases

if TYPE_CHECKING:
    from benchmarks.quality.scores import Scorer
    from max_zimage.request.limits import RequestDefaults

T = TypeVar("T")

STEPS = (20, 50)
GUIDANCE = 4.0
PROMPTS = 64
PEER_PROMPTS = 8
QUICK_PROMPTS = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write and plot; 0 if the table is complete, 130 if it was interrupted."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given[:1] == ["requests"]:
        from benchmarks.quality import requests

        return requests.main(given[1:])
    parser = _parser()
    options = parser.parse_args(given)
    prompts = _checked(parser, options)
    # Imported when the arguments are right: torch, diffusers and MAX take ten seconds.
    from benchmarks.quality import scores

    scorer = scores.Scorer(
        lpips=_scale(parser, "LPIPS", "--lpips", options.lpips, scores.Lpips),
        clip=_scale(parser, "CLIP score", "--clip", options.clip, scores.ClipScore),
    )
    options.output.mkdir(parents=True, exist_ok=True)
    if not options.resume:
        _samples(options).unlink(missing_ok=True)
    try:
        _measure(options, prompts, scorer)
    except KeyboardInterrupt:
        print(f"interrupted; {options.output} has what was measured, --resume goes on")
        return 130
    return 0


def _measure(options: argparse.Namespace, prompts: list[cases.Prompt], scorer: Scorer) -> None:
    import torch

    from benchmarks.quality import draws, plot, runs, scores
    from max_zimage import ZImagePipeline, embedded
    from tests.references.diffusers_runs import load_reference

    torch.set_num_threads(os.cpu_count() or 1)
    conditions, file = Conditions.now(), options.output / "quality.csv"
    samples = scores.kept(_samples(options))
    pipeline = ZImagePipeline.from_pretrained(
        options.model or embedded.PATH, device=options.device, dtype=options.dtype
    )
    dtype = pipeline.sources.dtypes["transformer"]
    reference = load_reference(embedded.PATH) if options.peer_prompts else None

    def save(drawn: Sequence[scores.Sample]) -> None:
        scores.append(_samples(options), drawn)
        samples.extend(drawn)
        write_csv(file, scores.rows(samples, dtype), conditions)

    for case in _cases(options, pipeline.sources.defaults):
        groups = {"": draws.engine_group(pipeline, case)}
        if reference is not None:
            groups["diffusers"] = draws.diffusers_group(reference, case)
        competition = runs.Competition(case=case, groups=groups, prompts={"diffusers": options.peer_prompts})
        runs.run(competition, prompts, scorer, tuple(samples), save)
    measured = scores.rows(samples, dtype)
    print(table(measured, conditions))
    plot.draw(measured, file.with_suffix(".png"))
    print(f"({', '.join(f'{name} {value}' for name, value in vars(conditions).items())})\n-> {file}", flush=True)


def _cases(options: argparse.Namespace, defaults: RequestDefaults) -> list[cases.Case]:
    """One for every number of steps; what is not given is the checkpoint's own."""
    guidance = defaults.guidance_scale if options.guidance is None else options.guidance
    height, width = options.height or defaults.height, options.width or defaults.width
    listed = [cases.Case.of(n, guidance, height, width) for n in options.steps or [defaults.num_inference_steps]]
    return [case.quick() for case in listed] if options.quick else listed


def _samples(options: argparse.Namespace) -> Path:
    """Every picture's numbers, from which the table is made."""
    return Path(options.output / "quality-samples.jsonl")


def _scale(
    parser: argparse.ArgumentParser, name: str, flag: str, path: Path | None, make: Callable[[Path], T]
) -> T | None:
    if path is None:
        print(f"{name}: not measured, {flag} names no weights")
        return None
    try:
        return make(path)
    except ValueError as error:
        parser.error(str(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, nargs="+", metavar="N", help="(default: 20 and 50; a --model's own)")
    parser.add_argument("--guidance", type=float, metavar="SCALE", help="(default: 4; a --model's own)")
    parser.add_argument("--count", type=int, metavar="N", help=f"prompts (default: {PROMPTS}; all of --prompts)")
    parser.add_argument(
        "--peer-prompts",
        type=int,
        metavar="N",
        help=f"how many of them diffusers and cache-dit draw (default: {PEER_PROMPTS}; 0 with --model)",
    )
    parser.add_argument("--model", metavar="PATH", help="a checkpoint in place of the embedded model")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="with --model: one prompt a line")
    parser.add_argument("--height", type=int, metavar="PIXELS")
    parser.add_argument("--width", type=int, metavar="PIXELS")
    parser.add_argument("--device", default="cpu", help="cpu, gpu or auto (default: cpu)")
    parser.add_argument("--dtype", default="auto", help="of the model (default: auto; float32 for the embedded one)")
    parser.add_argument("--lpips", type=Path, metavar="FILE", help="torchvision's weights of AlexNet, for LPIPS")
    parser.add_argument("--clip", type=Path, metavar="DIR", help="a CLIP model of transformers, for the CLIP score")
    parser.add_argument("--quick", action="store_true", help="few prompts and settings: does it run?")
    parser.add_argument("--resume", action="store_true", help="go on where an interrupted run stopped")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where table, plot and samples go")
    return parser


def _checked(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[cases.Prompt]:
    """Fill in what depends on the model, and return the prompts."""
    for name in ("count", "height", "width"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be 1 or more, got {value}")
    few = QUICK_PROMPTS if options.quick else None
    if options.model is None:
        if options.prompts is not None:
            parser.error("--prompts needs --model: the embedded model draws scenes that can be checked")
        options.steps, options.dtype = options.steps or list(STEPS), "float32"
        options.guidance = GUIDANCE if options.guidance is None else options.guidance
        options.peer_prompts = (few or PEER_PROMPTS) if options.peer_prompts is None else options.peer_prompts
        options.output = options.output or RESULTS
        return cases.scene_prompts(options.count or few or PROMPTS)
    if options.prompts is None or options.output is None:
        parser.error("--model needs --prompts FILE, one prompt a line, and --output DIR")
    if options.peer_prompts:
        parser.error(f"--peer-prompts is for the embedded model, got {options.peer_prompts} with --model; leave it out")
    options.peer_prompts = 0
    try:
        return cases.prompts_of_file(options.prompts)[: options.count or few]
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    raise SystemExit(main())
