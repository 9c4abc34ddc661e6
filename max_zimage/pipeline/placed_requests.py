"""Where components go for one request that is known before anything is loaded."""

from __future__ import annotations

from dataclasses import replace

from max_zimage.device.memory import NotEnoughMemoryError
from max_zimage.pipeline.estimate import check_request
from max_zimage.pipeline.loading import CheckedModel
from max_zimage.pipeline.placing import Size, placed
from max_zimage.request.request import GenerationRequest


def placed_for(prepared: CheckedModel, request: GenerationRequest) -> CheckedModel:
    """Choose for a request.

    Raises:
        NotEnoughMemoryError: If it does not fit, whatever is chosen; names what would.
    """
    sources, wish = prepared.sources, prepared.wish
    try:
        plan = placed(sources, wish, Size.of(request))
    except NotEnoughMemoryError:
        if not wish.asks:
            check_request(sources, prepared.devices[0], request, loaded=False)  # which says what picture would fit
        raise
    if plan.is_plain and not wish.asks:
        check_request(sources, prepared.devices[0], request, loaded=False)
    return replace(prepared, plan=plan)
