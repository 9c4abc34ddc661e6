"""`max-zimage doctor`: what would fail on this machine, and what to do about it."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import asdict
from typing import Any

from max_zimage.cli.errors import quiet_libraries
from max_zimage.cli.options import model_path
from max_zimage.diagnosis.doctor import examine
from max_zimage.diagnosis.findings import Finding
from max_zimage.diagnosis.system import REFERENCE, machine, versions
from max_zimage.host.words import counted

_STATES = ("ok", "warning", "fault")


def doctor(arguments: argparse.Namespace) -> int:
    """Run the command.

    Args:
        arguments: From `max_zimage.cli.main`.

    Returns:
        The exit code: 1 if there is a fault.
    """
    with quiet_libraries(arguments.debug) as stdout:
        found: list[Finding] = []
        for each in examine(model_path(arguments.model), arguments.device, arguments.port):
            found.append(each)
            if not arguments.json:
                print("\n".join(_lines(each)), file=stdout, flush=True)
    states = Counter(each.state for each in found)
    if arguments.json:
        print(json.dumps(_facts(found)))
    else:
        print(f"{counted(states['fault'], 'fault')}, {counted(states['warning'], 'warning')}, {states['ok']} ok")
    return 1 if states["fault"] else 0


def _lines(finding: Finding) -> list[str]:
    lines = [f"{finding.state:8} {finding.name}: {finding.found}"]
    return [*lines, f"{'':8} -> {finding.remedy}"] if finding.remedy else lines


def _facts(found: list[Finding]) -> dict[str, Any]:
    states = Counter(each.state for each in found)
    return {
        "verdict": next((state for state in reversed(_STATES) if any(each.state == state for each in found)), "ok"),
        "counts": {state: states[state] for state in ("ok", "warning", "fault")},
        "versions": versions(*REFERENCE),
        "machine": machine(),
        "findings": [asdict(each) for each in found],
    }
