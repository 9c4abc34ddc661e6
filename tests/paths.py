"""Where the project lies, and where processes that tests start find it."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INSTALLED = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "references" / "without_torch")])
"""PYTHONPATH of processes that are to find what an installation has: not PyTorch, which only tests depend on."""
