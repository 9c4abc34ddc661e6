"""Trainings where MAX is not installed."""

from __future__ import annotations

import os
import subprocess
import sys

_CODE = """
import sys
from importlib.machinery import PathFinder

class NoMax(PathFinder):
    def find_spec(name, path=None, target=None):
        return None if name == "max" else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = NoMax
from {module} import card, recipe
from {module}.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def run_without_max(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """As `python -m MODULE ARGUMENTS` with no MAX, and with the modules of its training imported."""
    words = [sys.executable, "-c", _CODE.format(module=module), *arguments]
    places = os.pathsep.join(path for path in sys.path if path)
    return subprocess.run(words, env={**os.environ, "PYTHONPATH": places}, capture_output=True, text=True, check=False)
