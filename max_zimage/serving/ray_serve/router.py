"""How Ray Serve's handles choose a replica: equal shapes meet, and replicas that do not serve get nothing.

Reference: ray.serve.request_router, in 2.60 an alpha of its API.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from ray.exceptions import RayError
from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from max_zimage.serving.ray_serve.call import Call
from max_zimage.serving.ray_serve.shapes import ranked, turned

READY = "ready"
"""Of a replica's statistics: whether it draws."""
_TELLS = 0.1  # seconds in which a replica that is asked for its requests answers, as Ray's own routers have it


class ShapeRouter(RequestRouter):
    """Sends requests of one shape to one replica as long as that is not much busier than another."""

    def initialize_state(self, **kwargs: Any) -> None:
        """Take what the deployment was configured with.

        Args:
            **kwargs: `slack` and `room`, see `shapes.ranked`.
        """
        self._slack, self._room = int(kwargs["slack"]), int(kwargs["room"])

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Rank the replicas for a request; of each rank Ray takes the idlest that has room."""
        serving = [each for each in candidate_replicas if each.routing_stats.get(READY, True)] or candidate_replicas
        shape = ""
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # else Ray asks again without a pause
            shape = next((each.shape for each in pending_request.args if isinstance(each, Call)), "")
        by_name = {each.replica_id.unique_id: each for each in serving}
        waiting = await self._waiting(by_name)
        return [[by_name[name] for name in rank] for rank in turned(ranked(shape, waiting, self._slack, self._room))]

    async def _waiting(self, replicas: Mapping[str, RunningReplica]) -> dict[str, int | None]:
        """Requests of each replica; None of one that does not say.

        What Ray has heard of a replica counts for some seconds, and a picture may take longer: one of which nothing
        has been heard since may be idle or at work, and is asked.
        """
        cache = self.replica_queue_len_cache
        waiting = {name: cache.get(each.replica_id) for name, each in replicas.items()}
        asked = [replicas[name] for name, count in waiting.items() if count is None]
        answers = await asyncio.gather(*map(_told, asked))
        for replica, count in zip(asked, answers, strict=True):
            if count is not None:
                cache.update(replica.replica_id, count)
                waiting[replica.replica_id.unique_id] = count
        return waiting


async def _told(replica: RunningReplica) -> int | None:
    """How many requests a replica says it has; None if it does not say."""
    try:
        async with asyncio.timeout(_TELLS):
            return int(await replica.get_queue_len(deadline_s=_TELLS))
    except (TimeoutError, RayError):
        return None
