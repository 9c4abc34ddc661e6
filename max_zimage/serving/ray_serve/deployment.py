"""The deployments of a fleet: a gateway, replicas of the server, and encoders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, BackpressureConfig, RequestRouterConfig
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from max_zimage.host.processors import share_of
from max_zimage.host.ray_clusters import LOCAL
from max_zimage.serving.ray_serve.door import Door
from max_zimage.serving.ray_serve.encoding import Encoding
from max_zimage.serving.ray_serve.gateway import Gateway
from max_zimage.serving.ray_serve.router import ShapeRouter
from max_zimage.serving.ray_serve.settings import FleetSettings
from max_zimage.serving.settings import ServerSettings

GATEWAY, PICTURES, ENCODERS = "gateway", "pictures", "encoders"
"""Names of the deployments, by which a `serve.yaml` may say more of them."""

_ROOM = 16  # requests above those that may wait and be drawn: such as ask how far others are
_LOOK = 2.0  # seconds between two looks at a replica's health, of which Ray wants three bad ones
_TOLD = 1.0  # seconds after which the router hears whether a replica serves
_LAST_WORDS = 10.0  # seconds above those in which a replica finishes what it draws
_ENCODED = 2  # prompts at each encoder, on average, beyond which there are to be more encoders
_PROMPTS = 16  # at a gateway that wait for each encoder; replicas encode what comes above
_COME_AGAIN = 2.0  # seconds
_CONSTRUCTED = 3  # times that a replica is tried to be started before the deployment is given up


@serve.ingress()
class GatewayReplica:
    """As Ray Serve makes it."""

    def __init__(
        self,
        settings: ServerSettings,
        replicas: DeploymentHandle[Any],
        encoders: DeploymentHandle[Any] | None,
        configured: Mapping[str, Any],
    ) -> None:
        door = Door(settings.api_key, settings.limits.body_bytes)
        encoding = None if encoders is None else Encoding(encoders, configured)
        self._app = Gateway(replicas, door, encoding, settings.limits.seconds)

    def __serve_build_asgi_app__(self) -> ASGIApp:  # the name is Ray's
        return self._app


def application(
    settings: ServerSettings,
    fleet: FleetSettings,
    opening: Callable[[], Any],
    opening_encoder: Callable[[], Any],
    configured: Mapping[str, Any],
) -> Application:
    """The fleet as Ray Serve takes it.

    Args:
        settings: Of each server.
        fleet: How many there are, and of what they are.
        opening: As `PictureReplica` takes it; has to be importable where replicas are.
        opening_encoder: As `EncoderReplica` takes it.
        configured: As `Encoding` takes it.

    Returns:
        What `serve.run` runs. Called where Ray is, whose devices decide where replicas go.
    """
    from max_zimage.serving.ray_serve.replica import PictureReplica

    there: Any = ray.cluster_resources()  # type: ignore[no-untyped-call]
    gpus = fleet.gpus if fleet.gpus is not None else float("GPU" in there)
    together = settings.pictures_together(on_host=not gpus)
    device = {"num_cpus": fleet.counted, "num_gpus": gpus}
    own = 0 if gpus else _processors(fleet)
    room = settings.limits.queue + 2 * together
    routing: dict[str, Any] = {
        "request_router_class": ShapeRouter,
        "request_router_kwargs": {"slack": int(together > 1), "room": room},
        "request_routing_stats_period_s": _TOLD,
    }
    pictures = _deployment(PictureReplica).options(
        name=PICTURES,
        # A batch is being drawn and the next one is there: more than that waits for another replica.
        **_count(fleet.replicas, fleet.max_replicas, 2 * together),
        ray_actor_options=device,
        # The server refuses by itself what it has no room for, and says when to come again; Ray's bound is above.
        max_ongoing_requests=room + _ROOM,
        max_queued_requests=settings.connections.connections,  # a burst that is being sent on waits in no server yet
        graceful_shutdown_timeout_s=settings.shutdown_seconds + _LAST_WORDS,
        graceful_shutdown_wait_loop_s=1.0,
        health_check_period_s=_LOOK,
        max_constructor_retry_count=_CONSTRUCTED,
        request_router_config=RequestRouterConfig(**routing),
    )
    encoding = device | {"num_gpus": min(gpus, 1)}  # a text encoder alone runs on one device
    encoders = _encoders(fleet, encoding).bind(opening_encoder, own) if fleet.encoders else None
    gateway = _deployment(GatewayReplica).options(
        name=GATEWAY,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=settings.connections.connections,
        max_queued_requests=settings.connections.connections,
        backpressure_config=BackpressureConfig(retry_after_s=_COME_AGAIN),  # of Ray's proxy, which refuses beyond
        graceful_shutdown_timeout_s=settings.shutdown_seconds + _LAST_WORDS,
        graceful_shutdown_wait_loop_s=1.0,
    )
    bound: Application = gateway.bind(settings, pictures.bind(opening, own), encoders, configured)
    return bound


def _processors(fleet: FleetSettings) -> int:
    """How many a replica without a GPU is kept to; 0 for no limit."""
    if fleet.cpus is not None:
        return int(fleet.cpus)
    return share_of(fleet.most) if fleet.address == LOCAL else 0


def _encoders(fleet: FleetSettings, device: Mapping[str, Any]) -> Any:
    from max_zimage.serving.ray_serve.encoder import EncoderReplica

    return _deployment(EncoderReplica).options(
        name=ENCODERS,
        **_count(fleet.encoders, fleet.most_encoders, _ENCODED),
        ray_actor_options=device,
        max_ongoing_requests=2 * _ENCODED,
        max_queued_requests=_PROMPTS * fleet.most_encoders,
        health_check_period_s=_LOOK,
        max_constructor_retry_count=_CONSTRUCTED,
    )


def _deployment(replica: type) -> Any:
    return serve.deployment(replica)  # to a type checker a decorator


def _count(fewest: int, most: int, each: float) -> Mapping[str, Any]:
    """How many replicas: a number, or what their queues ask for, which is so many requests for each."""
    if most == fewest:
        return {"num_replicas": fewest}
    scaling = AutoscalingConfig(min_replicas=fewest, max_replicas=most, target_ongoing_requests=each)
    return {"autoscaling_config": scaling}
