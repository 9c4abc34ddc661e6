"""A real fleet on the embedded model, on a Ray that the command starts and ends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import psutil

from tests.references.servers import Server


class LocalFleet:
    """Two replicas behind Ray's proxy.

    Args:
        folder: For its log and its state.
        flags: Of the command, besides.
    """

    def __init__(self, folder: Path, flags: Sequence[str]) -> None:
        usual = ["--ray", "local", "--replicas", "2", "--state-store", f"file://{folder}/state", "--device", "cpu"]
        self.server = Server(folder, [*usual, *flags])

    def processes(self) -> list[psutil.Process]:
        """All that belong to it."""
        try:
            own = psutil.Process(self.server.process.pid)
            return [own, *own.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def replicas(self) -> list[psutil.Process]:
        """The processes of the replicas, whose names Ray sets."""
        found = []
        for process in self.processes():
            try:
                title = " ".join(process.cmdline())
            except psutil.Error:
                continue
            if title.startswith("ray::ServeReplica") and "pictures" in title:
                found.append(process)
        return found

    def resident(self) -> float:
        """MiB that only its processes have."""
        total = 0
        for process in self.processes():
            try:
                total += process.memory_full_info().uss
            except psutil.Error:
                continue
        return total / 2**20

    def serving(self) -> int:
        """Replicas whose workers take requests."""
        answer = self.server.client.get("/metrics")
        up = [line for line in answer.text.splitlines() if line.startswith("zimage_worker_up{")]
        return sum(line.endswith(" 1.0") for line in up) if answer.status_code == 200 else 0
