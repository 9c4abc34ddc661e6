"""A checkpoint on this machine, stage by stage beside diffusers: what `max-zimage verify` does.

Diffusers runs first and ends; then the engine, one component after the other, so that neither side's memory is in the
other's way. Where the velocity is off, the first block whose output is off is searched for.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from max_zimage import embedded
from max_zimage.checkpoint.locate import resolve_model
from max_zimage.device.dtypes import ModelDtype
from max_zimage.device.memory import NotEnoughMemoryError, available_memory
from max_zimage.diagnosis.asked import Asked
from max_zimage.diagnosis.engine import Generator, texts_of
from max_zimage.diagnosis.reference_process import check_installed, fitting, run_reference
from max_zimage.diagnosis.report import Report, checkpoint_facts
from max_zimage.diagnosis.stages import STAGES, Array, Comparison, Stage, Values, bound, lost_in_bfloat16
from max_zimage.pipeline.encoder import ZImageTextEncoder
from max_zimage.pipeline.loading import CheckedModel
from max_zimage.pipeline.zimage import ZImagePipeline

References = Mapping[ModelDtype, Values]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is verified.

    Attributes:
        model: Folder or hub id; None for the embedded model.
        weight_path: Weight files of the engine's in place of the checkpoint's own.
        device: Where the engine runs.
        reference: Folder or hub id of what diffusers loads; None for the same checkpoint.
    """

    model: str | None = None
    weight_path: Sequence[str] = ()
    device: str = "auto"
    reference: str | None = None

    def checked(self, dtype: ModelDtype, *, generator_only: bool = False) -> CheckedModel:
        """The checkpoint, found and checked.

        Raises:
            ValueError: If it, the device or a file does not do.
        """
        options = {"device": self.device, "dtype": dtype, "weight_path": self.weight_path, "quantize": ""}
        whole = ZImagePipeline.prepare(self.model, **options)
        if not generator_only:
            return whole
        files = [str(file) for name in ("transformer", "vae") for file in whole.sources.files[name]]
        kept = [each for each in self.weight_path if str(Path(each)) in files]
        return ZImagePipeline.prepare(self.model, **options | {"weight_path": kept}, generator_only=True)

    def reference_directory(self, checked: CheckedModel) -> Path:
        """What diffusers loads.

        Raises:
            CheckpointError: If there is no such model.
        """
        if self.reference is None:
            return checked.directory
        return embedded.PATH if self.reference == embedded.NAME else resolve_model(self.reference)


def verify(subject: Subject, asked: Asked) -> Report:
    """Compare all stages in every dtype that memory allows.

    Args:
        subject: The checkpoint.
        asked: The picture; its sizes and its prompt are checked by whoever asks.

    Raises:
        RequestError: If diffusers is not installed.
        ValueError: If the checkpoint does not do, or memory is insufficient for any comparison.
        ReferenceFailedError: If diffusers fails.
    """
    check_installed()
    checked = {dtype: subject.checked(dtype) for dtype in asked.dtypes}
    first = checked[asked.dtypes[0]]
    directory = subject.reference_directory(first)
    sizes = {dtype: each.sources.nbytes for dtype, each in checked.items()}
    dtypes, left_out = fitting(sizes, available_memory())
    if not dtypes:
        raise NotEnoughMemoryError("; ".join(left_out) + "; free memory, or use a machine with more")
    with tempfile.TemporaryDirectory(prefix="max-zimage-verify-") as folder:
        references = run_reference(directory, replace(asked, dtypes=tuple(dtypes)), Path(folder))
    found: list[Comparison] = []
    block = None
    for dtype in asked.dtypes:
        try:
            stages, suspect = _engine(subject, dtype, asked, references)
        except NotEnoughMemoryError as error:
            left_out.append(f"the engine in {dtype} was left out: {error}")
            continue
        found += stages
        block = block or suspect
        gc.collect()
    if not found:
        raise NotEnoughMemoryError("; ".join(left_out))
    return Report(
        asked=asked,
        device=first.devices[0].label,
        checkpoint=checkpoint_facts(subject.model or embedded.NAME, first.sources),
        other_reference=subject.reference is not None,
        comparisons=tuple(found),
        left_out=tuple(left_out),
        block=block,
    )


def _engine(
    subject: Subject, dtype: ModelDtype, asked: Asked, references: References
) -> tuple[list[Comparison], str | None]:
    """All stages in one dtype beside every reference, and the first block that is off where the velocity is."""
    base = next(iter(references.values()))
    whole = subject.checked(dtype)
    on_host = whole.devices[0].is_host
    encoder = ZImageTextEncoder.prepare(
        subject.model,
        device=subject.device,
        dtype=dtype,
        weight_path=whole.sources.files["text_encoder"],
        quantize="",
    )
    values: dict[str, Array] = texts_of(encoder, asked, base)
    gc.collect()
    generator = Generator(subject.checked(dtype, generator_only=True), asked, base)
    values |= generator.stages()
    found = [
        each
        for stage in STAGES
        for each in compared(stage, values[stage.name], _named(stage, references), dtype, on_host=on_host)
    ]
    off = {each.stage for each in found if not each.holds}
    return found, _first_block(generator, references, dtype, on_host=on_host) if "velocity" in off else None


def _named(stage: Stage, references: References) -> dict[ModelDtype, Values]:
    """The references' values of a stage under its name; the first block is their block 0."""
    kept = "block 0" if stage.name == "first block" else stage.name
    return {dtype: {stage.name: values[kept]} for dtype, values in references.items()}


def compared(
    stage: Stage, ours: Array, references: References, dtype: ModelDtype, *, on_host: bool
) -> list[Comparison]:
    """The engine's value of a stage beside that of every reference; those without a dtype once."""
    loses = lost_in_bfloat16(stage, references)
    theirs = list(references.items())[: None if stage.has_dtype else 1]
    return [
        Comparison.of(
            stage, ours, values[stage.name], bound(stage, dtype, other, loses, on_host=on_host), (dtype, other)
        )
        for other, values in theirs
    ]


def _first_block(generator: Generator, references: References, dtype: ModelDtype, *, on_host: bool) -> str | None:
    """The first block whose output is off, found by halving: what is off stays off behind it."""
    (block,) = (stage for stage in STAGES if stage.name == "first block")
    names = generator.blocks

    def holds(index: int) -> bool:
        theirs = {other: {block.name: values[f"block {index}"]} for other, values in references.items()}
        return all(each.holds for each in compared(block, generator.block(index), theirs, dtype, on_host=on_host))

    low, high = 0, len(names)  # blocks before `low` hold; `high` is off, or behind the last one
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if holds(middle) else (low, middle)
    return names[low] if low < len(names) else None
