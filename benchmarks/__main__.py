"""Run the benchmark, all parts or some: `python -m benchmarks [--quick] [--repeats N] [part ...]`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OTEL_SDK_DISABLED", "true")

from benchmarks.measure import RESULTS, Conditions, Row, table, write_csv

PARTS = {
    "machine": "the machine's matmul rate, MAX and torch",
    "end_to_end": "the embedded model's pictures against diffusers, eager and compiled",
    "waterfall": "our optimisations, one switch each, on top of one another",
    "kernels": "the ops written in Mojo, their twins of plain operations, and PyTorch",
    "block": "one transformer block at the real width, float32 and bfloat16",
    "resolutions": "that block over picture sizes: the linear and the quadratic share",
    "operations": "where the time of that block goes",
    "attention": "attention over 4,128 tokens, time and memory",
    "skipped_step": "what a step costs that a step cache leaves out, at 1024x1024",
    "additions": "what samplers, guidance variants and the like cost in a step",
    "tiles": "the autoencoder in tiles: against the whole one, time and estimated memory",
    "adapters": "LoRA at the published sizes: opening a file, and a block loaded with one",
    "mixed_adapters": "pictures under different adapters, together and set by set; low-rank products by themselves",
    "storages": "quantized weights of the embedded model: pictures beside those of whole ones, and memory",
    "storage_errors": "each storage's error of weights, of the embedded transformer and of a block of the real width",
    "published_size": "the published size on this processor, with random weights that a variable names",
    "start": "cold and warm start, and peak memory",
    "loading": "loading weights of the published shapes: seconds, and the peak of memory beside its bound",
    "text_diffusion": "a denoising step of DiffusionGemma beside transformers, and its first compilation",
    "sweep": "the profiler's sweep: dtypes, step caches, quantized weights, ways to compute attention",
    "first_picture": "from the command of a server to the first picture on its page, in a browser",
    "jobs": "a job's pictures a second, in one process and by actors of Ray, beside a loop in Python",
    "serving": "the server: what it adds, pictures a second, memory over many requests",
    "fleet": "two replicas on Ray Serve under open-loop load, memory, and one of them killed",
}
_OF_SIZES = (
    "storage_errors",
    "additions",
    "tiles",
    "adapters",
    "mixed_adapters",
    "sweep",
    "first_picture",
    "serving",
    "text_diffusion",
)
"""Parts whose `rows` take sizes and repeats alone."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; 0 if every part came to its end."""
    options = _parse(arguments)
    roofs: dict[str, float] | None = None
    for part in options.parts or list(PARTS):
        conditions = Conditions.now()
        print(f"\n## {part}: {PARTS[part]}", flush=True)
        if roofs is None and part in ("kernels", "block", "resolutions", "operations", "attention", "skipped_step"):
            roofs = _roofs(_measure("machine", options, {}))
        rows = _measure(part, options, roofs or {})
        if part == "machine":
            roofs = _roofs(rows)
        print(table(rows, conditions))
        file = options.output / f"{part}.csv"
        write_csv(file, rows, conditions)
        print(f"({', '.join(f'{name} {value}' for name, value in vars(conditions).items())})\n-> {file}", flush=True)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"any of {', '.join(PARTS)}; none for all")
    parser.add_argument("--repeats", type=int, default=10, help="timed calls of each competitor (default 10)")
    parser.add_argument("--quick", action="store_true", help="small sizes, one call: does it run?")
    parser.add_argument("--skip-cold", action="store_true", help="leave out the cold start, which compiles for minutes")
    parser.add_argument(
        "--layers",
        type=int,
        metavar="N",
        help="of the checkpoint that is loaded (loading); all if not given",
    )
    parser.add_argument("--seconds", type=float, metavar="S", help="of each load (fleet); 300 if not given")
    parser.add_argument(
        "--lpips", type=Path, metavar="FILE", help="torchvision's weights of AlexNet, for LPIPS (storages)"
    )
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIR", help="where the CSV files go")
    options = parser.parse_args(arguments)
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        parser.error(f"unknown part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if options.repeats < 1:
        parser.error(f"--repeats must be 1 or more, got {options.repeats}")
    if options.seconds is not None and options.seconds <= 0:
        parser.error(f"--seconds must be above 0, got {options.seconds:g}")
    options.repeats = 1 if options.quick else options.repeats
    return options


def _measure(part: str, options: argparse.Namespace, roofs: dict[str, float]) -> list[Row]:
    """Import a part only when it runs: each brings torch, diffusers and MAX along."""
    if part == "loading":
        from benchmarks import loading

        return loading.rows("small" if options.quick else "full", options.layers, options.repeats)
    if part == "fleet":
        from benchmarks import fleet

        return fleet.rows(fleet.QUICK if options.quick else fleet.FULL, options.repeats, options.seconds)
    if part == "storages":
        from benchmarks import storages

        return storages.rows(storages.QUICK if options.quick else storages.FULL, options.lpips)
    if part == "jobs":
        from benchmarks import jobs

        return jobs.rows(jobs.QUICK if options.quick else jobs.FULL, options.repeats)
    return _computed(part, options, roofs)


def _computed(part: str, options: argparse.Namespace, roofs: dict[str, float]) -> list[Row]:
    """Measure a part that computes."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    quick, repeats = options.quick, options.repeats
    if part == "machine":
        from benchmarks import machine

        return machine.rows(machine.QUICK if quick else machine.FULL, repeats)
    if part == "end_to_end":
        from benchmarks import end_to_end

        return end_to_end.rows(end_to_end.QUICK if quick else end_to_end.FULL, repeats)
    if part == "waterfall":
        from benchmarks import waterfall

        return waterfall.rows(waterfall.QUICK if quick else waterfall.FULL, repeats)
    if part == "resolutions":
        from benchmarks import resolutions

        return resolutions.rows(resolutions.QUICK if quick else resolutions.FULL, repeats, roofs)
    if part == "kernels":
        from benchmarks import kernel_cases, kernels

        return kernels.rows(kernel_cases.QUICK if quick else kernel_cases.FULL, repeats, roofs)
    if part == "block":
        from benchmarks import block

        return block.rows(block.QUICK if quick else block.FULL, repeats, roofs)
    if part == "operations":
        from benchmarks import block, operations

        return operations.rows(block.QUICK if quick else block.FULL, repeats, roofs)
    if part == "attention":
        from benchmarks import attention

        return attention.rows(attention.QUICK if quick else attention.FULL, repeats, roofs)
    if part == "skipped_step":
        from benchmarks import skipped_step

        return skipped_step.rows(skipped_step.QUICK if quick else skipped_step.FULL, repeats, roofs)
    if part == "published_size":
        from benchmarks import published_size

        return published_size.rows(quick=quick)
    if part in _OF_SIZES:
        module = import_module(f"benchmarks.{part}")
        found: list[Row] = module.rows(module.QUICK if quick else module.FULL, repeats)
        return found
    from benchmarks import start

    return start.rows(repeats, cold=not (options.skip_cold or quick))


def _roofs(rows: list[Row]) -> dict[str, float]:
    from benchmarks.machine import roofs

    return roofs(rows)


if __name__ == "__main__":
    raise SystemExit(main())
