"""The graphs of the registry that take the steps, and what runs between them."""

from __future__ import annotations

from functools import partial

from max_zimage.compile import counting
from max_zimage.compile.entry import Entry
from max_zimage.graphs.step.adapted import denoise_adapted
from max_zimage.graphs.step.compose import UpdatePicture, denoise_step, extrapolated_step
from max_zimage.graphs.step.extrapolate import TaylorUpdate
from max_zimage.graphs.step.first_block import FirstBlockStep
from max_zimage.graphs.step.guided import GuidedUpdate
from max_zimage.graphs.step.masked import KeepUnmasked
from max_zimage.graphs.step.meshed import meshed_step
from max_zimage.graphs.step.meshed_first_block import MeshedFirstBlockStep
from max_zimage.graphs.step.paired import denoise_nag
from max_zimage.graphs.step.positions import Positions
from max_zimage.graphs.step.streamed import StreamedBlock, StreamedStart, streamed_end

_STEP = "transformer."

STEPS: tuple[Entry, ...] = (
    Entry(
        name="denoise",
        component="transformer",
        make=denoise_step,
        label="denoising steps",
        runs="once per evaluation",
        count=counting.count_denoise,
        prefix=f"predict.{_STEP}",
        is_replayed=True,
    ),
    Entry(
        name="denoise_nag",
        component="transformer",
        make=denoise_nag,
        label="denoising steps, NAG",
        runs="with normalized attention guidance: once per evaluation that it is part of",
        count=partial(counting.count_denoise, is_paired=True),
        prefix=f"predict.{_STEP}",
        is_replayed=True,
    ),
    *(
        Entry(
            name=name,
            component="transformer",
            make=partial(meshed_step, is_padded=is_padded),
            label=f"denoising steps, several GPUs{', rows of unequal length' if is_padded else ''}",
            runs=f"on several GPUs{', with captions of unequal length in a batch' if is_padded else ''}: "
            "once per evaluation",
            count=counting.count_denoise,
            prefix=f"predict.{_STEP}",
            is_meshed=True,
        )
        for name, is_padded in (("denoise_meshed", False), ("denoise_meshed_padded", True))
    ),
    Entry(
        name="denoise_adapted",
        component="transformer",
        make=denoise_adapted,
        label="denoising steps, adapters by picture",
        runs="on a CPU, where pictures of one batch have different adapters: once per evaluation",
        count=counting.count_adapted,
        prefix=f"predict.{_STEP}",
        is_ahead=False,
    ),
    Entry(
        name="streamed_start",
        component="transformer",
        make=StreamedStart,
        label="steps, before streamed blocks",
        runs="with streamed blocks: once per evaluation",
        count=counting.count_streamed_start,
        prefix="trunk.",
    ),
    Entry(
        name="streamed_block",
        component="transformer",
        make=StreamedBlock,
        label="steps, streamed blocks",
        runs="with streamed blocks: once per evaluation and main layer",
        count=counting.count_streamed_block,
    ),
    Entry(
        name="streamed_end",
        component="transformer",
        make=streamed_end,
        label="steps, behind streamed blocks",
        runs="with streamed blocks: once per evaluation",
        count=counting.count_streamed_end,
        prefix="predict.",
    ),
    *(
        Entry(
            name=f"first_block_{block}",
            component="transformer",
            make=partial(FirstBlockStep, first=block),
            label="steps, first block",
            runs="with first-block caching: once per evaluation and branch row",
            prefix=_STEP,
            is_ahead=block == "noise_refiner",
        )
        for block in ("noise_refiner", "layers")
    ),
    *(
        Entry(
            name=f"meshed_first_block_{block}",
            component="transformer",
            make=partial(MeshedFirstBlockStep, first=block),
            label="steps, first block, several GPUs",
            runs="on several GPUs that share tokens, with first-block caching: once per evaluation and branch row",
            prefix=_STEP,
            is_ahead=block == "noise_refiner",
            is_meshed=True,
            is_of_one_row=True,
        )
        for block in ("noise_refiner", "layers")
    ),
    Entry(
        name="guidance",
        component="transformer",
        make=UpdatePicture,
        label="guidance",
        runs="with first-block caching: once per evaluation and picture",
        count=counting.count_elementwise,
        is_keyed=False,
        is_float32=True,
    ),
    Entry(
        name="guided_update",
        component="transformer",
        make=GuidedUpdate,
        label="guidance variant",
        runs="with a guidance variant or rescaling: once per guided evaluation",
        count=counting.count_elementwise,
        is_keyed=False,
        is_float32=True,
    ),
    Entry(
        name="keep_unmasked",
        component="transformer",
        make=KeepUnmasked,
        label="inpainting",
        runs="with a mask: once before the first step and after each",
        count=counting.count_elementwise,
        is_keyed=False,
        is_float32=True,
    ),
    Entry(
        name="positions",
        component="transformer",
        make=Positions,
        label="rotary tables",
        runs="with DyPE, in pictures beyond its base resolution: once per evaluation",
        count=counting.count_positions,
        is_keyed=False,
        is_float32=True,
    ),
    Entry(
        name="taylor_update",
        component="transformer",
        make=TaylorUpdate,
        label="Taylor differences",
        runs="with TaylorSeer: after each computed evaluation",
        count=counting.count_taylor_update,
        is_keyed=False,
        is_float32=True,
    ),
    Entry(
        name="taylor_step",
        component="transformer",
        make=extrapolated_step,
        label="steps, extrapolated",
        runs="with TaylorSeer: in each extrapolated evaluation",
        count=counting.count_elementwise,
        is_keyed=False,
        is_float32=True,
    ),
)
