"""`max-zimage profile`: where the seconds of a picture go, or those of one component on random inputs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from max_zimage.cli.console import display
from max_zimage.cli.errors import checking, quiet_libraries
from max_zimage.cli.profile_component import component
from max_zimage.cli.profile_picture import picture
from max_zimage.cli.profile_table import print_profile
from max_zimage.images.save import next_free_paths
from max_zimage.profiling.measure import measure
from max_zimage.profiling.report import Profile
from max_zimage.profiling.trace import trace_events
from max_zimage.progress import shown_by

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
            subject = picture(arguments) if arguments.component is None else component(arguments)
        with shown_by(display(note=_PATIENCE)):
            flags = {"warmups": arguments.warmup, "repeats": arguments.repeats}
            measured = measure(subject, **flags, synchronize=not arguments.no_sync)
    facts = measured.facts()
    facts["trace"] = None if arguments.trace is None else str(_save_trace(measured, Path(arguments.trace)))
    if arguments.json:
        print(json.dumps(facts), file=stdout)
    else:
        print_profile(facts)
    return 0


def check_flags(arguments: argparse.Namespace) -> None:
    """Refuse flags that have no meaning together, and a trace that could not be written.

    Raises:
        ValueError: If there are such.
    """
    name = arguments.component
    idle = {None: ("tokens", "layers"), "vae": ("tokens",)}.get(name, ("height", "width"))
    idle += () if name is None else ("prompt", "steps", "guidance", "step_cache", "weight_path")
    for flag in idle:
        if getattr(arguments, flag):
            where = "without --component" if name is None else f"with --component {name}"
            raise ValueError(f"--{flag.replace('_', '-')} has no meaning {where}; leave it out")
    if arguments.trace is not None:
        folder = Path(arguments.trace).parent
        if not folder.is_dir() or Path(arguments.trace).is_dir():
            raise ValueError(f"--trace {arguments.trace}: name a file in a folder that exists")


def _save_trace(measured: Profile, wanted: Path) -> Path:
    (path,) = next_free_paths(wanted, 1)
    path.write_text(json.dumps(trace_events(measured)), encoding="utf-8")
    return path
