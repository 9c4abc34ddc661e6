"""What many pictures are worth beside others of the same noise: columns of every table of results."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Many pictures beside those of the same noise from the case's reference row; None where it is not known.

    Attributes:
        skipped: Share of the transformer's evaluations that were left out, all steps and all branches.
        identical: Share of the pictures that are equal to the reference's; `Row.psnr_db` is the mean of the others.
        psnr_p5_db: 5th percentile of all, infinite ones included.
        ssim: Mean structural similarity.
        ssim_p5: 5th percentile.
        lpips: Mean learned perceptual distance.
        clip_score: Mean of 100 times the cosine between a picture and its prompt.
        color_right: Share of pictures whose object has the colour that was asked for.
        shape_right: The same of its shape.
        background_right: The same of the ground.
        all_right: Share of pictures that show all three.
    """

    skipped: float | None = None
    identical: float | None = None
    psnr_p5_db: float | None = None
    ssim: float | None = None
    ssim_p5: float | None = None
    lpips: float | None = None
    clip_score: float | None = None
    color_right: float | None = None
    shape_right: float | None = None
    background_right: float | None = None
    all_right: float | None = None


UNKNOWN = Quality()
