"""Ray on this machine: what is started, what is left of it, and what is left by those that were killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from max_zimage.host import ray_clusters
from max_zimage.host.ray_clusters import before_ray, ray_cluster
from tests.paths import ROOT


class FakeRay:
    """Remembers how it is called."""

    def __init__(self) -> None:
        self.given: dict[str, Any] = {}
        self.is_down = False

    def init(self, **given: Any) -> None:
        self.given = given
        if given["address"] == "nowhere:1":
            raise ConnectionError("nobody is there")

    def shutdown(self) -> None:
        self.is_down = True


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(ray_clusters, "_PLACE", tmp_path)
    return tmp_path


def test_one_of_this_machine_is_small_and_its_own(place: Path) -> None:
    ray = FakeRay()
    with ray_cluster(ray, "local", processors=1000, object_bytes=2**28, log_to_driver=False):
        folder = Path(ray.given.pop("_temp_dir"))
        assert folder.parent == place
        assert folder.is_dir()
        assert not ray.is_down
    assert ray.given == {
        "address": "local",
        "num_cpus": 1000,
        "object_store_memory": 2**28,
        "include_dashboard": False,
        "log_to_driver": False,
    }
    assert ray.is_down
    assert not folder.exists()


def test_only_one_of_this_machine_keeps_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"RAY_USAGE_STATS_ENABLED": "1"})
    before_ray("auto")
    assert os.environ == {"RAY_USAGE_STATS_ENABLED": "1", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    before_ray("local")
    assert os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"


@pytest.mark.slow
def test_it_listens_on_loopback_alone() -> None:
    """Each of its processes, on each port; twenty seconds."""
    pytest.importorskip("ray")
    code = (
        "import psutil\nfrom max_zimage.host.ray_clusters import before_ray, ray_cluster\nbefore_ray('local')\n"
        "import ray\n"
        "with ray_cluster(ray, 'local', processors=1, object_bytes=2**27):\n"
        "    ray.get(ray.remote(lambda: 1).remote())\n"
        "    own = [each for each in psutil.Process().children(recursive=True)]\n"
        "    ports = [port for each in own for port in each.net_connections('inet') if port.status == 'LISTEN']\n"
        "    print('ports', len(ports), *{port.laddr.ip.removeprefix('::ffff:') for port in ports})\n"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    (line,) = [line.split() for line in found.stdout.splitlines() if line.startswith("ports ")]
    assert int(line[1]) > 3
    assert line[2:] == ["127.0.0.1"]


def test_another_is_joined_as_it_is() -> None:
    ray = FakeRay()
    with ray_cluster(ray, "auto", processors=4, object_bytes=1, log_to_driver=True):
        assert ray.given == {"address": "auto", "log_to_driver": True}
    with (
        pytest.raises(ConnectionError, match="nobody is there"),
        ray_cluster(ray, "nowhere:1", processors=1, object_bytes=1),
    ):
        pass
    assert ray.is_down


def test_the_folder_of_a_process_that_was_killed_is_removed_and_no_other(place: Path) -> None:
    code = (
        "import os, signal\nfrom pathlib import Path\nfrom max_zimage.host import ray_clusters\n"
        f"ray_clusters._PLACE = Path({str(place)!r})\n"
        "with ray_clusters._own_folder():\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    (left,) = place.iterdir()
    (place / "max-zimage-ray-of-others").mkdir()
    with ray_clusters._own_folder() as first, ray_clusters._own_folder() as second:
        assert not left.exists()
        assert {path.name for path in place.iterdir()} == {first.name, second.name, "max-zimage-ray-of-others"}
