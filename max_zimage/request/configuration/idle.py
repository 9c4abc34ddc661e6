"""The one table of what may do nothing: keys and flags of llm-dit that have no meaning on MAX, each with its line.

Reference: reference/generation.md section 11, reference/api.md.
"""

from __future__ import annotations

from dataclasses import dataclass

COMPILED = "everything is compiled ahead of its first use, with or without it"
ATTENTION = "attention is MAX's, or the project's own kernel; attention_backend chooses between those"
SCHEDULE = "there is one scheduler; sampler and sigma_shape choose its parts"
THINKING = "a think block stands where thinking_content has one, as in llm-dit"
NO_CODE = "no code that lies beside a checkpoint is run"
CHECKPOINT_SHIFT = (
    "between which ends a shift grows is the checkpoint's (base_shift and max_shift of its scheduler); dynamic_shift "
    "says whether it grows with the picture, shift sets one for all sizes"
)


@dataclass(frozen=True, kw_only=True)
class Idle:
    """One of them.

    Attributes:
        keys: Section and name in the configuration file.
        line: Why it does nothing.
        type: Of its value.
        off: The value that asks for nothing; None where any other than leaving it out asks.
        flag: On the command line; "" where there is none.
    """

    keys: tuple[tuple[str, str], ...]
    line: str
    type: type = bool
    off: object = False
    flag: str = ""


IDLE = (
    Idle(keys=(("optimization", "compile"), ("pytorch", "compile")), line=COMPILED, flag="--compile"),
    Idle(keys=(("pytorch", "compile_mode"),), line=COMPILED, type=str, off=""),
    Idle(keys=(("optimization", "flash_attn"), ("pytorch", "flash_attn")), line=ATTENTION, flag="--flash-attn"),
    Idle(keys=(("pytorch", "use_custom_scheduler"),), line=SCHEDULE, flag="--use-custom-scheduler"),
    Idle(keys=(("encoder", "trust_remote_code"),), line=NO_CODE),
    Idle(keys=(("generation", "enable_thinking"),), line=THINKING, off=True, flag="--enable-thinking"),
    Idle(keys=(("dype", "base_shift"),), line=CHECKPOINT_SHIFT, type=float, off=0.5, flag="--dype-base-shift"),
    Idle(keys=(("dype", "max_shift"),), line=CHECKPOINT_SHIFT, type=float, off=1.15, flag="--dype-max-shift"),
)


def said_of(name: str, line: str) -> str:
    """The line that answers a key or a flag."""
    return f"{name} has no effect on MAX: {line}"
