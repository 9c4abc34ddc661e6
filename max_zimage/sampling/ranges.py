"""Ends of the ranges that requests and schedules agree on. Imports nothing: the command line's help reads them too."""

from __future__ import annotations

MAX_SEED = 2**63 - 1
"""Largest seed; the smallest is 0."""

MIN_SHIFT, MAX_SHIFT = 0.01, 100.0
"""Between these float32 tells the noise levels of up to 1,000 even steps apart."""

DEFAULT_STRENGTH = 0.6
"""As in diffusers."""
