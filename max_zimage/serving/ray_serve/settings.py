"""What a fleet is started with, besides the server that each of its replicas is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class FleetSettings:
    """A fleet.

    Attributes:
        address: Of the cluster, as `ray.init` takes it, or `ray_clusters.LOCAL`.
        replicas: Of the server, at least.
        max_replicas: At most; as many as at least for a fixed number.
        encoders: Replicas of the text encoder alone, at least; 0 for none.
        max_encoders: At most; what is not above `encoders` is for a fixed number.
        cpus: Processors that each replica has for itself where it has no GPU, as far as there are free ones, and that
            Ray counts. None for an even share of them on a Ray of its own, and for one elsewhere, that Ray only counts.
        gpus: That Ray gives to each replica, and of them at most one to each encoder; 0 for one on the CPU, None for
            one where the cluster has any.
    """

    address: str
    replicas: int = 1
    max_replicas: int = 1
    encoders: int = 0
    max_encoders: int = 0
    cpus: float | None = None
    gpus: float | None = None

    @property
    def most_encoders(self) -> int:
        """Encoders, at most."""
        return max(self.encoders, self.max_encoders) if self.encoders else 0

    @property
    def most(self) -> int:
        """Replicas and encoders together, at most."""
        return self.max_replicas + self.most_encoders

    @property
    def counted(self) -> float:
        """Processors that Ray counts for each replica."""
        return 1.0 if self.cpus is None else self.cpus
