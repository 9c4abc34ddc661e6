"""`max-zimage profile`: where the seconds of a picture go, or those of one component on random inputs."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from max_zimage.cli import profile_suite as suite
from max_zimage.cli.console import display
from max_zimage.cli.errors import checking, quiet_libraries
from max_zimage.cli.placement_flags import wanted_places
from max_zimage.cli.profile_component import component
from max_zimage.cli.profile_info import info_facts, print_info
from max_zimage.cli.profile_picture import picture
from max_zimage.cli.profile_table import print_profile
from max_zimage.images.save import check_folder, next_free_paths
from max_zimage.profiling.measure import measure
from max_zimage.profiling.report import Profile
from max_zimage.profiling.trace import trace_events
from max_zimage.progress import shown_by

_OF_PICTURES = (
    "prompt", "steps", "guidance", "step_cache", "weight_path", "embedding_cache", "attention_backend"
)  # fmt: skip
"""Flags that mean nothing to a component alone."""
_INSTEAD = ("show_info", "attention", "sweep", "tests")
"""Flags of what is done in place of a profile of parts."""
_PATIENCE = "What was not compiled before compiles now, which takes minutes; later profiles take it from disk."


def profile(arguments: argparse.Namespace) -> int:
    """Run the command.

    Args:
        arguments: From `max_zimage.cli.main`.

    Returns:
        The exit code, 0.

    Raises:
        BadInput: If anything is wrong with what is asked for, or does not fit into memory; before anything is compiled.
    """
    with quiet_libraries(arguments.debug) as stdout:
        with checking():
            check_flags(arguments)
        if arguments.show_info or arguments.attention or arguments.tests or arguments.sweep:
            return _other(arguments, stdout)
        with checking():
            subject = picture(arguments) if arguments.component is None else component(arguments)
        with shown_by(display(note=_PATIENCE)):
            flags = {"warmups": arguments.warmup, "repeats": arguments.repeats}
            measured = measure(subject, **flags, synchronize=not arguments.no_sync)
    facts = measured.facts()
    facts["trace"] = None if arguments.trace is None else str(_save_trace(measured, Path(arguments.trace)))
    _tell(arguments, facts, print_profile, stdout)
    return 0


def _other(arguments: argparse.Namespace, stdout: TextIO) -> int:
    """What is done in place of the profile of a picture; the exit code is 1 if a test failed."""
    with checking():
        if arguments.show_info:
            facts, show = info_facts(arguments), print_info
        elif arguments.attention:
            facts, show = suite.attention(arguments), suite.print_attention
        elif arguments.sweep:
            facts, show = suite.sweep(arguments), suite.print_sweep
        else:
            facts, show = suite.tests(arguments), suite.print_tests
    _tell(arguments, facts, show, stdout)
    failed = [] if arguments.show_info else suite.failures(facts)
    for problem in failed:
        print(f"max-zimage: error: {problem}", file=sys.stderr)
    return 1 if failed else 0


def _tell(
    arguments: argparse.Namespace, facts: dict[str, Any], show: Callable[[Mapping[str, Any]], None], stdout: TextIO
) -> None:
    suite.written_to(None if arguments.output is None else Path(arguments.output), facts)
    if arguments.json:
        print(json.dumps(facts), file=stdout)
    else:
        with contextlib.redirect_stdout(stdout):
            show(facts)


def check_flags(arguments: argparse.Namespace) -> None:
    """Refuse flags that have no meaning together, and a trace that could not be written.

    Raises:
        ValueError: If there are such.
    """
    name = arguments.component
    idle = {None: ("tokens", "layers"), "vae": ("tokens",)}.get(name, ("height", "width"))
    idle += () if name is None else _OF_PICTURES
    idle = idle if not arguments.attention else (*_OF_PICTURES, "height", "width", "layers", "quantize")
    for flag in idle:
        if getattr(arguments, flag):
            where = "without --component" if name is None else f"with --component {name}"
            where = "with --attention" if arguments.attention else where
            raise ValueError(f"--{flag.replace('_', '-')} has no meaning {where}; leave it out")
    instead = [flag for flag in _INSTEAD if getattr(arguments, flag)]
    for alone in ("show_info", "attention"):
        if alone in instead and len(instead) > 1:
            raise ValueError(f"--{alone.replace('_', '-')} is alone; leave --{instead[-1]} out")
    if arguments.attention and wanted_places(arguments):
        raise ValueError("where components run has no meaning with --attention; leave it out")
    others = {"--component": name, "--trace": arguments.trace, "--no-sync": arguments.no_sync}
    if idle_flags := [flag for flag, value in others.items() if instead and value]:
        raise ValueError(f"{' and '.join(idle_flags)}: no meaning with --{instead[0].replace('_', '-')}; leave it out")
    if arguments.output is not None:
        check_folder(Path(arguments.output))
        if Path(arguments.output).exists():
            raise ValueError(f"--output {arguments.output} exists and is not overwritten; choose another name")
    if arguments.trace is not None:
        folder = Path(arguments.trace).parent
        if not folder.is_dir() or Path(arguments.trace).is_dir():
            raise ValueError(f"--trace {arguments.trace}: name a file in a folder that exists")


def _save_trace(measured: Profile, wanted: Path) -> Path:
    (path,) = next_free_paths(wanted, 1)
    path.write_text(json.dumps(trace_events(measured)), encoding="utf-8")
    return path
