"""LoRA and its relatives: opened, checked against a model, and added to a checkpoint's weights.

    file or PEFT folder -> names taken apart -> kinds, shapes, dtypes checked -> Adapter -> a transform of the weights

An adapter is a small file that changes a model's weights by products of small matrices. What it adds is made in float32
while the weights are read, in the rows of the checkpoint's files, before these are rounded, stacked and packed; a graph
never sees it.
"""

from __future__ import annotations

from max_zimage.checkpoint.adapters.adapter import Adapter
from max_zimage.checkpoint.adapters.adding import added
from max_zimage.checkpoint.adapters.opening import open_adapter
from max_zimage.errors import AdapterError

__all__ = ["Adapter", "AdapterError", "added", "open_adapter"]
