"""What a fuzzer counts."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Tally:
    """What became of the inputs that were tried.

    Attributes:
        tried: Inputs.
        right: Of these, how many ended in what is right for them: a picture, a value, a state.
        refused: How many were refused with a clear error, as they should be.
        wrong: One sentence for each that ended otherwise, with what it takes to try it again.
    """

    tried: int = 0
    right: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.tried + other.tried, self.right + other.right, self.refused + other.refused, self.wrong + other.wrong
        )
