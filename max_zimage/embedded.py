"""The small model that comes with the package: a Z-Image checkpoint to try everything with."""

from pathlib import Path

NAME = "tiny-zimage"
"""What it is called on the command line and in pictures."""

PATH = Path(__file__).parent / "assets" / NAME
"""Its folder, laid out as diffusers' checkpoints are."""
