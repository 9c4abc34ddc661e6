"""The fields of a request that say which part of its image is drawn anew; a part of the table in `fields`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from max_zimage.request.kinds import Array, Switch
from max_zimage.request.list_kinds import Margins
from max_zimage.request.row import Flag, Images, Kept, Responses, row

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskFields:
    """What of an image is kept.

    Attributes:
        mask_image: uint8 [rows, columns], 255 is drawn anew and 0 is kept; as it was given, in greys. Or None.
        soft_mask: Whether greys between say how far, as differential image-to-image has it; else 128 and above are
            drawn anew.
        composite: Whether the image's own pixels take their place again in the finished picture.
        outpaint: Pixels that are added around the image to the left, at the top, to the right and at the bottom, and
            drawn anew; or None.
    """

    mask_image: npt.NDArray[np.uint8] | None = row(
        Array(),
        is_checked_alone=False,
        flag=Flag("--mask", "FILE", "draw anew what is white in this picture, keep what is black", "image-to-image"),
        images=Images("mask_image", edits_only=True),
        responses=Responses("mask_image", place="", param="metadata"),
    )
    soft_mask: bool = row(
        Switch(),
        default=False,
        flag=Flag("--soft-mask", "", "greys of the mask say how far to go from the image", "image-to-image"),
        images=Images("soft_mask", "Whether greys of the mask say how far to go.", edits_only=True),
        responses=Responses("soft_mask", place="metadata", param="metadata"),
        kept=Kept("bool", since=4, before=False),
        shared="value",
    )
    composite: bool = row(
        Switch(),
        default=False,
        flag=Flag("--composite", "", "put the image's own pixels back where the mask keeps them", "image-to-image"),
        images=Images("composite", "Whether kept pixels are the image's own.", edits_only=True),
        responses=Responses("composite", place="metadata", param="metadata"),
        kept=Kept("bool", since=4, before=False),
    )
    outpaint: tuple[int, ...] | None = row(
        Margins(limits=("max_width", "max_height")),
        flag=Flag("--outpaint", "L,T,R,B", "add so many pixels left, above, right, below it", "image-to-image"),
        images=Images("outpaint", "Pixels to add around the image: left, top, right, bottom.", edits_only=True),
        responses=Responses("outpaint", place="metadata", param="metadata"),
        kept=Kept("tuple[int, ...] | None", since=4),
    )
