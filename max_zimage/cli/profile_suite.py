"""`max-zimage profile --tests` and `--sweep`: tests by name, and the same over configurations, each loaded afresh."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from max.driver import load_devices
from max.engine import InferenceSession
from rich import box
from rich.table import Table

from max_zimage import embedded
from max_zimage.cli.console import display, table_console
from max_zimage.cli.info import conditions
from max_zimage.cli.model_shapes import specs_of
from max_zimage.cli.profile_picture import checked_picture
from max_zimage.cli.sweep_configurations import CONFIGURATIONS, configurations_of
from max_zimage.device.devices import device_spec
from max_zimage.device.dtypes import model_dtype
from max_zimage.pipeline.zimage import ZImagePipeline
from max_zimage.profiling.attention_paths import AttentionShape, compare
from max_zimage.profiling.peak_memory import meter
from max_zimage.profiling.suite import ENCODE, GENERATE, named_tests, run_tests
from max_zimage.progress import shown_by

_MIB = 2**20
_TOKENS = 1056
"""Of a 512x512 picture and a caption."""
_PASSED_ON = (
    ("prompt", "--prompt"),
    ("height", "--height"),
    ("width", "--width"),
    ("steps", "--steps"),
    ("guidance", "--guidance"),
    ("device", "--device"),
    ("placement", "--placement"),
    ("max_memory", "--max-memory"),
    ("encoder_device", "--encoder-device"),
    ("dit_device", "--dit-device"),
    ("vae_device", "--vae-device"),
    ("devices", "--devices"),
    ("split", "--split"),
    ("config", "--config"),
    ("chosen_profile", "--profile"),
)
"""What every configuration has in common; of a file each reads what its own flags do not say."""


def tests(arguments: argparse.Namespace) -> dict[str, Any]:
    """Load a model and run tests on it; everything is checked before.

    Raises:
        ValueError: If anything is wrong with what is asked for.
    """
    names = named_tests(arguments.tests or "encode,generate")
    prepared, request, conditions = checked_picture(arguments)
    held = meter(prepared.devices[0])
    with shown_by(display(quiet=arguments.json)):
        begin = time.perf_counter()
        held.begin()
        pipeline = ZImagePipeline.from_prepared(prepared)
        pipeline.compile_step_cache(request.step_cache)
        seconds, peak = time.perf_counter() - begin, held.end()
    counts = {"warmups": arguments.warmup, "repeats": arguments.repeats}
    outcomes = [each.facts() for each in run_tests(pipeline, request, names, **counts)]
    peaks = [each for each in (peak, *(one["memory_peak"] for one in outcomes)) if each is not None]
    return {
        **conditions,
        "load_seconds": seconds,
        "memory": held.meaning,
        "memory_peak": max(peaks, default=None),
        "repeats": arguments.repeats,
        "tests": outcomes,
    }


def attention(arguments: argparse.Namespace) -> dict[str, Any]:
    """Compare the ways to compute attention, at the shape of the model's heads.

    Raises:
        ValueError: If anything is wrong with what is asked for.
    """
    (device,) = load_devices([device_spec(arguments.device)])
    dtype = model_dtype(arguments.dtype or "auto", device)
    spec = specs_of(arguments.model or str(embedded.PATH)).transformer
    tokens = _TOKENS if arguments.tokens is None else arguments.tokens
    if tokens < 1:
        raise ValueError(f"--tokens must be at least 1, got {tokens}")
    shape = AttentionShape(tokens=tokens, heads=spec.num_heads, head_dim=spec.head_dim)
    with shown_by(display(quiet=arguments.json)):
        session = InferenceSession(devices=[device])
        rows = compare(device, dtype, shape, session, repeats=arguments.repeats)
    said = conditions(arguments.model or embedded.NAME, None, device, dtype)
    sizes = f"{shape.tokens} tokens, {shape.heads} heads of {shape.head_dim}"
    return {**said, "sizes": sizes, "repeats": arguments.repeats, "attention": rows}


def print_attention(facts: Mapping[str, Any]) -> None:
    """What `attention` found, as a person reads it."""
    console, table = table_console(), _new_table("attention", "ms", "TFLOP/s", "speedup", "PSNR dB", "SSIM", "max abs")
    for row in facts["attention"]:
        forms = {"ms": ".2f", "tflop_per_s": ".3f", "speedup": ".2f", "psnr_db": ".1f", "ssim": ".6f", "max_abs": ".1e"}
        table.add_row(row["path"], *(_number(row[name], form) for name, form in forms.items()))
    console.print(f"{facts['sizes']}, {facts['dtype']} on {facts['device']} ({facts['cores']} cores)")
    console.print(table)
    console.print("speedup over the plain one in float32, and how near results are to its; auto is the first")


def sweep(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the tests in every configuration, in a process of its own.

    Raises:
        ValueError: If anything is wrong with what is asked for.
    """
    names = configurations_of(
        arguments.sweep, on_accelerator=_is_on_accelerator(arguments), fixed=_fixed(arguments.given)
    )
    wanted = ",".join(named_tests(arguments.tests or f"{ENCODE},{GENERATE}"))
    given = {"--dtype": arguments.dtype, "--quantize": arguments.quantize, "--step-cache": arguments.step_cache}
    given |= {"--embedding-cache": arguments.embedding_cache or None}
    given |= {"--attention-backend": arguments.attention_backend}
    if taken := [flag for flag, value in given.items() if value is not None]:
        raise ValueError(f"{' and '.join(taken)}: a sweep sets it in each configuration; leave it out")
    checked_picture(arguments)
    flags = [word for name, flag in _PASSED_ON for word in _flag(flag, getattr(arguments, name))]
    flags += [word for file in arguments.weight_path for word in ("--weight-path", file)]
    flags += ["--cpu-offload"] if arguments.cpu_offload else []
    common = [*([arguments.model] if arguments.model else []), *flags, "--batch", str(arguments.batch)]
    common += ["--tests", wanted, "--repeats", str(arguments.repeats), "--json"]
    common += ["--warmup", str(arguments.warmup)]
    rows: list[dict[str, Any]] = []
    for name in names:
        print(f"max-zimage: {name} ({len(rows) + 1} of {len(names)})", file=sys.stderr)
        rows.append({"configuration": name, "flags": list(CONFIGURATIONS[name])} | _child(common, CONFIGURATIONS[name]))
    return {"sweep": [row | _compared(row, rows[0]) for row in rows]}


def _is_on_accelerator(arguments: argparse.Namespace) -> bool:
    """Whether the transformer is to run on one."""
    if arguments.devices is not None:
        return True
    (device,) = load_devices([device_spec(arguments.dit_device or arguments.device)])
    return not device.is_host


def _fixed(given: Collection[str]) -> dict[str, str]:
    """Flag of a configuration -> the flag of the command that says it of all."""
    says = {"devices": "--placement", "cpu_offload": "--placement", "placement": "--placement"}
    says |= {"encoder_device": "--encoder-device"}
    return {flag: f"--{name.replace('_', '-')}" for name, flag in says.items() if name in given}


def _flag(flag: str, value: object) -> list[str]:
    if value is None:
        return []
    text = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return [f"{flag}={text}"]


def _child(common: Sequence[str], flags: Sequence[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "max_zimage", "profile", *common, *flags]
    # The variables that Python knows: a running MAX sets PYTHONEXECUTABLE besides, to the first python3 on PATH.
    done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, check=False)
    try:
        return dict(json.loads(done.stdout))
    except ValueError:
        said = [line for line in done.stderr.splitlines() if "error: " in line] or done.stderr.splitlines()[-1:]
        return {"error": " ".join(said).removeprefix("max-zimage: error: "), "tests": []}


def _compared(row: Mapping[str, Any], baseline: Mapping[str, Any]) -> dict[str, Any]:
    total, usual = _total(row), _total(baseline)
    return {"total_ms": total, "speedup": usual / total if total and usual else None}


def _total(row: Mapping[str, Any]) -> float | None:
    found = [each["duration_ms"] for each in row["tests"]]
    return None if not found or None in found else sum(found)


def failures(facts: Mapping[str, Any]) -> list[str]:
    """What failed, in words."""
    found = []
    for row in facts.get("sweep", [facts] if "tests" in facts else []):
        messages = [row.get("error"), *(f"{each['test']}: {each['error']}" for each in row["tests"] if each["error"])]
        found += [f"{row.get('configuration', 'tests')}: {message}" for message in messages if message]
    return found


def print_tests(facts: Mapping[str, Any]) -> None:
    """What `tests` found, as a person reads it."""
    console, table = table_console(), _new_table("test", "ms", "peak MiB", "tokens", "tokens/s")
    for each in facts["tests"]:
        cells = (each["duration_ms"], _mib(each["memory_peak"]), each.get("token_count"), each.get("tokens_per_sec"))
        table.add_row(each["test"], *map(_number, cells))
    console.print(
        f"{facts['model']}, {facts['sizes']}, {facts['steps_asked']} steps, {facts['dtype']} on {facts['device']}"
    )
    console.print(table)
    console.print(
        f"loading took {facts['load_seconds']:.1f} s; the run in the middle of {facts['repeats']}, after one more"
    )
    console.print(f"memory: {facts['memory']}")


def print_sweep(facts: Mapping[str, Any]) -> None:
    """What `sweep` found, as a person reads it."""
    console = table_console()
    table = _new_table("configuration", "load s", "encode ms", "generate ms", "total ms", "peak MiB", "speedup")
    for row in facts["sweep"]:
        times = {each["test"]: each["duration_ms"] for each in row["tests"]}
        cells = (row.get("load_seconds"), times.get(ENCODE), times.get(GENERATE), row["total_ms"])
        table.add_row(
            row["configuration"], *map(_number, (*cells, _mib(row.get("memory_peak")))), _number(row["speedup"], ".2f")
        )
    console.print(table)


def _new_table(first: str, *numbers: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column(first, no_wrap=True)
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _mib(count: int | None) -> float | None:
    return None if count is None else count / _MIB


def _number(value: float | None, form: str = ".1f") -> str:
    return "" if value is None else f"{value:{form}}"


def written_to(path: Path | None, facts: Mapping[str, Any]) -> None:
    """Write what was found as JSON, where that is asked for."""
    if path is not None:
        from max_zimage.images.save import save_new

        save_new(path, (json.dumps(facts, indent=1) + "\n").encode())
