"""What a checkpoint is where its components came to run: a placement may have moved some after it was read.

Reference: `reference/weights.md` section 4.
"""

from __future__ import annotations

from dataclasses import replace

from max_zimage.device.plans import HOST, Plan
from max_zimage.pipeline.attention import with_attention
from max_zimage.pipeline.loading import CheckedModel
from max_zimage.pipeline.manifest import CheckpointManifest
from max_zimage.pipeline.placing import device_of, placed_usually, tell
from max_zimage.pipeline.storages import said, storage_on


def placed_to_load(prepared: CheckedModel) -> CheckedModel:
    """A checked checkpoint with a plan, chosen here where it has none, and as that has it; says what has no effect.

    Raises:
        NotEnoughMemoryError: If the weights do not fit.
    """
    plan = prepared.plan or placed_usually(prepared.sources, prepared.wish)
    tell(prepared.wish)
    return replace(prepared, plan=plan, sources=as_placed(prepared.sources, plan))


def as_placed(sources: CheckpointManifest, plan: Plan) -> CheckpointManifest:
    """The checkpoint as where its components run has it: some may have gone to the CPU since it was read.

    That is how they are quantized, and which attention is the one that was asked for.
    """
    kept = {name: each.kept_as for name, each in sources.plans.items() if each.kept_as}
    found = {name: storage_on(said(storage), plan.devices[name] == HOST) for name, storage in kept.items()}
    stored = sources.with_storages({name: storage for name, storage in found.items() if storage is not None})
    if not sources.attention_wish:
        return stored
    devices = {name: device_of(plan.devices[name]) for name in sources.plans}
    return with_attention(stored, sources.attention_wish, devices)
