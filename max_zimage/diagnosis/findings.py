"""What `max-zimage doctor` says of one thing it looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "fault"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line.

    Attributes:
        name: What was looked at.
        state: "fault" where pictures fail or every start compiles for minutes, "warning" where something else would
            fail or is slower than it need be.
        found: What is there.
        remedy: What to do; empty where nothing is.
    """

    name: str
    state: State
    found: str
    remedy: str = ""


def ok(name: str, found: str) -> Finding:
    """Nothing to do."""
    return Finding(name=name, state="ok", found=found)


def warning(name: str, found: str, remedy: str) -> Finding:
    """Something would fail or is slow, and pictures are drawn."""
    return Finding(name=name, state="warning", found=found, remedy=remedy)


def fault(name: str, found: str, remedy: str) -> Finding:
    """Pictures fail, or every start compiles for minutes."""
    return Finding(name=name, state="fault", found=found, remedy=remedy)
