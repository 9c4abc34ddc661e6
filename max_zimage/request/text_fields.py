"""The fields of a request that say how its texts are read; a part of the table in `fields`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from max_zimage.request.kinds import Choice, Number, Text
from max_zimage.request.modes import LONG_PROMPT_MODES, REFUSE
from max_zimage.request.row import Flag, Images, Kept, Responses, Row, row


def _text(flag: str, text: str) -> Any:
    name = flag.removeprefix("--").replace("-", "_")
    return row(
        Text(),
        default="",
        flag=Flag(flag, "TEXT", text, "fine tuning"),
        images=Images(name, f"{text[0].upper()}{text[1:]}."),
        responses=Responses(name, place="metadata", param="metadata"),
        kept=Kept("str", since=4, before=""),
    )


def _number(flag: str, metavar: str, text: str, high: float, default: float) -> Any:
    name = flag.removeprefix("--").replace("-", "_")
    return row(
        Number(high=high, float32=True),
        default=default,
        flag=Flag(flag, metavar, text, "fine tuning"),
        images=Images(name, f"{text[0].upper()}{text[1:]}."),
        responses=Responses(name, place="metadata", param="metadata"),
        kept=Kept("float", since=4, before=default),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class TextFields:
    """How texts are read.

    Attributes:
        long_prompt_mode: What becomes of a prompt of more tokens than `max_sequence_length` says: it is refused, or
            else read whole, and its features made as few as the transformer has positions for; see
            `max_zimage.text.long_prompts`.
        system_prompt: A system message before each prompt; empty for none. Negative prompts stand alone.
        thinking_content: What the answer behind each prompt has between <think> and </think>; empty for none.
        assistant_content: The answer itself; empty leaves it open.
        seed_variance: How far the text's features are moved by the picture's seed; 0 is not at all.
        seed_variance_share: Share of the numbers that are moved.
    """

    long_prompt_mode: str = row(
        Choice(words=LONG_PROMPT_MODES),
        default=REFUSE,
        flag=Flag("--long-prompt-mode", "MODE", f"of too long a prompt: {', '.join(LONG_PROMPT_MODES)}", "fine tuning"),
        images=Images("long_prompt_mode", "What becomes of too long a prompt; it is refused if not given."),
        responses=Responses("long_prompt_mode", place="metadata", param="metadata"),
        kept=Kept("str", since=4, before=REFUSE),
    )
    system_prompt: str = _text("--system-prompt", "a system message before the prompt")
    thinking_content: str = _text("--thinking-content", "what the answer has between <think> and </think>")
    assistant_content: str = _text("--assistant-content", "the answer behind the prompt")
    seed_variance: float = _number(
        "--seed-variance", "X", "how far the seed moves the text's features; 0 is off", 100.0, 0.0
    )
    seed_variance_share: float = _number(
        "--seed-variance-share", "SHARE", "share of their numbers that it moves", 1.0, 0.5
    )


TEMPLATE = Row(
    argument="template",
    kind=Text(),
    is_checked_alone=False,
    flag=Flag("--template", "NAME", "texts around the prompt; info --templates lists them", "fine tuning"),
    images=Images("template", "A template's name, whose texts stand around the prompt."),
    responses=Responses("template", place="metadata", param="metadata"),
)
"""Stands for the texts of a template, and is not held by a request: pictures remember the texts."""
