"""The fields of a request that say how its texts are read; a part of the table in `fields`."""

from __future__ import annotations

from dataclasses import dataclass

from max_zimage.request.kinds import Choice
from max_zimage.request.modes import LONG_PROMPT_MODES, REFUSE
from max_zimage.request.row import Flag, Images, Kept, Responses, row


@dataclass(frozen=True, kw_only=True, eq=False)
class TextFields:
    """How texts are read.

    Attributes:
        long_prompt_mode: What becomes of a prompt of more tokens than `max_sequence_length` says: it is refused, or
            else read whole, and its features made as few as the transformer has positions for; see
            `max_zimage.text.long_prompts`.
    """

    long_prompt_mode: str = row(
        Choice(words=LONG_PROMPT_MODES),
        default=REFUSE,
        flag=Flag("--long-prompt-mode", "MODE", f"of too long a prompt: {', '.join(LONG_PROMPT_MODES)}", "fine tuning"),
        images=Images("long_prompt_mode", "What becomes of too long a prompt; it is refused if not given."),
        responses=Responses("long_prompt_mode", place="metadata", param="metadata"),
        kept=Kept("str", since=4, before=REFUSE),
    )
