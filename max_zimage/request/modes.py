"""What may become of a prompt that is too long. Imports nothing: the command line's help reads it too."""

from __future__ import annotations

REFUSE = "refuse"
LONG_PROMPT_MODES = (REFUSE, "truncate", "interpolate", "pool", "attention_pool")
"""Refused, or read whole and made fewer; see `max_zimage.text.long_prompts`."""
