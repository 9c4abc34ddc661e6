"""How Ray Serve's handles choose a replica: equal shapes meet, and replicas that do not serve get nothing.

Reference: ray.serve.request_router, in 2.60 an alpha of its API.
"""

from __future__ import annotations

from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from max_zimage.serving.ray_serve.call import Call
from max_zimage.serving.ray_serve.shapes import ranked, turned

READY = "ready"
"""Of a replica's statistics: whether it draws."""


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
        waiting = {name: self.replica_queue_len_cache.get(each.replica_id) or 0 for name, each in by_name.items()}
        return [[by_name[name] for name in rank] for rank in turned(ranked(shape, waiting, self._slack, self._room))]
