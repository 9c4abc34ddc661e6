"""What is asked of a conversion, checked before anything is opened."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from max_zimage.checkpoint.locate import COMPONENTS
from max_zimage.checkpoint.writers.encodings import BLOCKS, FLOATS, FP8, type_problem
from max_zimage.checkpoint.writers.layouts import LAYOUTS
from max_zimage.errors import CheckpointError
from max_zimage.sampling.ranges import MAX_SHIFT, MIN_SHIFT

SHARD_GB = 5.0


@dataclass(frozen=True, kw_only=True)
class Wish:
    """The arguments of `max_zimage.checkpoint.convert.convert`, under their names."""

    output: Path
    layout: str
    type: str | None
    components: tuple[str, ...]
    loras: tuple[tuple[Path, float], ...]
    shift: float | None
    keep_refiners: bool
    shard_gb: float
    overwrite: bool

    @property
    def is_folder(self) -> bool:
        """Whether the output is a folder."""
        layout = LAYOUTS[self.layout]
        return layout.folder and not (layout.ends and self.output.name.endswith(layout.ends))

    def check(self) -> None:
        """Look at everything that can be judged without the input.

        Raises:
            CheckpointError: With all that is wrong.
        """
        problems = [*self._of_layout(), *self._of_numbers()]
        if problems:
            raise CheckpointError("\n".join(problems))

    def _of_layout(self) -> list[str]:
        problems = []
        if self.type is not None and (problem := type_problem(self.type)):
            problems.append(problem)
        if unknown := [name for name in self.components if name not in COMPONENTS]:
            problems.append(f"a component must be one of {', '.join(COMPONENTS)}, got {', '.join(map(repr, unknown))}")
        if len(set(self.components)) < len(self.components):
            problems.append(f"a component is named twice in {', '.join(self.components)}; name it once")
        if self.layout not in LAYOUTS:
            return [f"the layout must be one of {', '.join(LAYOUTS)}, got {self.layout!r}", *problems]
        layout = LAYOUTS[self.layout]
        if self.type is not None and not type_problem(self.type) and self.type not in layout.types:
            others = [name for name, other in LAYOUTS.items() if self.type in other.types]
            problems.append(
                f"the layout {self.layout} holds {', '.join(layout.types)}, not {self.type}, which is of "
                f"{' and '.join(others)}"
            )
        elif self.type not in (None, *FLOATS) and self.components == ("vae",):
            problems.append(f"the VAE is never quantized; write it with one of {', '.join(FLOATS)}")
        if impossible := [name for name in self.components if name in COMPONENTS and name not in layout.names]:
            problems.append(
                f"a {' and a '.join(impossible)} cannot be written as {self.layout}, which nothing reads; use the "
                "layout original"
            )
        ends = (".safetensors", ".gguf", ".json", ".sft", ".ckpt", ".pt")
        if layout.folder and self.is_folder and self.output.suffix in ends:
            file = f", or a file that ends in {layout.ends}" if layout.ends else ""
            problems.append(f"the layout {self.layout} is a folder{file}; got the name {self.output.name}")
        if not layout.folder and not self.output.name.endswith(layout.ends):
            problems.append(f"the layout {self.layout} is a file that ends in {layout.ends}, got {self.output.name}")
        return problems

    def _of_numbers(self) -> list[str]:
        problems = []
        if self.keep_refiners and self.type not in (FP8, *BLOCKS):
            problems.append(f"--keep-refiners belongs to the types {', '.join((FP8, *BLOCKS))}; leave it out")
        if self.shift is not None and not MIN_SHIFT <= self.shift <= MAX_SHIFT:
            problems.append(f"the shift must be from {MIN_SHIFT:g} to {MAX_SHIFT:g}, got {self.shift:g}")
        if not self.shard_gb > 0:
            problems.append(f"a shard must hold more than 0 GB, got {self.shard_gb:g}")
        elif self.shard_gb != SHARD_GB and self.layout != "diffusers":
            problems.append("--shard-gb belongs to the layout diffusers; leave it out")
        problems += [
            f"the scale of a LoRA must be a finite number, got {scale:g} for {path}"
            for path, scale in self.loras
            if not math.isfinite(scale)
        ]
        return problems
