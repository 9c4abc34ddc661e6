"""A checkpoint as MAX describes it, made without letting MAX read a file of it.

MAX's own reader takes a configuration through transformers and Python's json, which know no byte-order mark and report
what is wrong without the file's name; its worker process reads everything once more. Here `model_index.json` is read
strictly once, and every part's configuration where it is needed (`max_zimage.checkpoint.description`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from max.pipelines import PipelineArgs
from max.pipelines.lib.config import MAXModelConfig, PipelineConfig
from max.pipelines.lib.model_manifest import ModelManifest

from max_zimage.checkpoint.model_index import PARTS, PIPELINE_CLASSES, read_index
from max_zimage.device.devices import device_spec


class PartConfig(MAXModelConfig):
    """A part of a checkpoint whose files MAX leaves unread, also in a worker that it is sent to."""

    def _populate_hf_config(self) -> None:
        """Read no configuration."""

    def _populate_generation_config(self) -> None:
        """Read no `generation_config.json`: pictures are not sampled from text."""


def pipeline_config(
    directory: Path,
    devices: Sequence[str],
    dtype: str | None,
    flags: Mapping[str, bool | int],
    weight_files: Mapping[str, Sequence[Path]] | None = None,
) -> PipelineConfig:
    """Make MAX's configuration of a checkpoint.

    Args:
        directory: The checkpoint.
        devices: Where the transformer runs; several compute together.
        dtype: MAX's word for the dtype of all parts; None leaves it to the device.
        flags: Of a step cache, as MAX names them.
        weight_files: Component -> its files in place of the checkpoint's own, so that a worker reads them, too.

    Raises:
        CheckpointError: If `model_index.json` is not that of a pipeline that is implemented.
    """
    index = read_index(directory)
    shared: dict[str, Any] = {"model_path": str(directory), "device_specs": [*map(device_spec, devices)]}
    if dtype is not None:
        shared["quantization_encoding"] = dtype
    files = {part: [path.resolve() for path in paths] for part, paths in (weight_files or {}).items()}
    parts = {part: PartConfig(**shared, subfolder=part, weight_path=files.get(part, [])) for part in PARTS}
    metadata = {key: value for key, value in index.items() if key not in PARTS} | {"_class_name": PIPELINE_CLASSES[0]}
    models = ModelManifest(parts, metadata=metadata)
    return PipelineConfig.from_args(PipelineArgs.from_flat_kwargs(models=models, **flags))
