"""The command and the processes it starts do without PyTorch where that is installed.

Nothing in them uses it. MAX's tokenizers import transformers, though, which imports PyTorch with all that belongs to it
wherever it finds it: 11.5 s of a slow processor and 540 MB for a process, 4.3 s and 240 MB without. Whoever has
diffusers has PyTorch. In Python it is left alone: a program may want it, and asks for it itself.
"""

from __future__ import annotations

import os
import sys

VARIABLE = "MAX_ZIMAGE_WITHOUT_TORCH"
"""Tells processes that a command starts."""


def leave_out() -> None:
    """Have this process and those it starts find no PyTorch; too late where one of the two has been imported."""
    os.environ[VARIABLE] = "1"
    if "torch" not in sys.modules and "transformers" not in sys.modules:
        sys.modules["torch"] = None  # type: ignore[assignment]  # which import takes for a module that is not there


def leave_out_if_told() -> None:
    """The same in a process that a command has started."""
    if os.environ.get(VARIABLE) == "1":
        leave_out()
