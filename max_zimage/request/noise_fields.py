"""The fields of a request that say what noise it begins with, and which part of the way it goes; part of the table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from max_zimage.request.kinds import Choice, Number, Whole
from max_zimage.request.row import Flag, Images, Kept, Responses, row
from max_zimage.sampling.ranges import MAX_SEED

NOISES = ("philox", "torch")


def _metadata(name: str) -> Responses:
    return Responses(name, place="metadata", param="metadata")


def _part(flag: str, text: str, default: float) -> Any:
    return row(
        Number(high=1.0),
        default=default,
        flag=Flag(flag, "SHARE", text, "fine tuning"),
        kept=Kept("float", since=4, before=default),
        shared="levels",
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class NoiseFields:
    """What a run begins with, and where it begins and ends.

    Attributes:
        noise: Who draws the starting noise: "philox", the same bits on every machine, or "torch", as torch's generator.
        variation_seed: Draws other noise, which is mixed in; picture k has variation_seed + k.
        variation_strength: How far to go there, from 0 to 1.
        denoising_start: Share of the steps that are left out at the beginning: `latents` are what they have left.
        denoising_end: Share of the steps after which the run ends.
    """

    noise: str = row(
        Choice(words=NOISES),
        default="philox",
        flag=Flag("--noise", "NAME", "who draws the starting noise: philox, or torch as other programs", "fine tuning"),
        images=Images("noise", "Who draws the starting noise: philox, or torch as other programs."),
        responses=_metadata("noise"),
        kept=Kept("str", since=4, before="philox"),
    )
    variation_seed: int | None = row(
        Whole(low=0, high=MAX_SEED),
        flag=Flag("--variation-seed", "N", "draws other noise that is mixed in", "fine tuning"),
        images=Images("variation_seed", "Draws other noise that is mixed in."),
        responses=_metadata("variation_seed"),
        kept=Kept("int | None", since=4),
    )
    variation_strength: float = row(
        Number(high=1.0),
        default=0.0,
        flag=Flag("--variation-strength", "SHARE", "how far to go to the other noise, up to 1", "fine tuning"),
        images=Images("variation_strength", "How far to go to the other noise, up to 1."),
        responses=_metadata("variation_strength"),
        kept=Kept("float", since=4, before=0.0),
    )
    denoising_start: float = _part("--denoising-start", "share of the steps that --latents-in has behind it", 0.0)
    denoising_end: float = _part("--denoising-end", "share of the steps after which to end", 1.0)
