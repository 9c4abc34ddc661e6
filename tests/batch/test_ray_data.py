"""Jobs drawn by actors of a Ray cluster on this machine, whose parts end while it draws."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import psutil
import pytest

from max_zimage.batch.drawing import Drawer
from max_zimage.batch.output import Output
from max_zimage.batch.record_book import RecordBook
from tests.batch.fakes import Here, digests, job_of, results, write_lines
from tests.paths import ROOT
from tests.references.diffusers_runs import Pair

ray = pytest.importorskip("ray")
SIZE = ("--steps", "2", "--guidance", "0", "--batch-pictures", "3", "--shard-rows", "64", "--quiet")
DEFAULTS: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 0.0}


def plain(embedded: Pair, file: Path, folder: Path) -> Path:
    """What comes of it where nothing ends."""
    drawer = Drawer(embedded.ours, RecordBook(Output(str(folder)), "run"), metadata=True)
    job_of(file, folder, batch_pictures=3, window_rows=64, defaults=DEFAULTS).run(Here(drawer))
    return folder


def rows_of(count: int) -> list[dict[str, Any]]:
    """Of mixed sizes."""
    sides = [64, 96, 64, 128]
    return [
        {"id": f"n{number}", "prompt": f"a star {number}", "height": sides[number % 4], "width": 64 + 32 * (number % 2)}
        for number in range(count)
    ]


@pytest.fixture(autouse=True)
def named(embedded: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the command line names the model: pictures say so."""
    monkeypatch.setattr(embedded.ours, "named", ("tiny-zimage", ()))


_NODE: dict[str, Any] = {"memory": 3 * 2**30, "object_store_memory": 80 * 2**20, "include_dashboard": False}
_MARK = "MAX_ZIMAGE_TEST_CLUSTER"
"""A variable that all processes of a cluster get from here: there may be others on this machine."""


@contextlib.contextmanager
def cluster(nodes: int) -> Iterator[Any]:
    """A head that draws nothing, and so many worker nodes; gone afterwards, whatever happens."""
    from ray.cluster_utils import Cluster

    os.environ[_MARK] = secrets.token_hex(8)
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **_NODE})
    try:
        for _ in range(nodes):
            made.add_node(num_cpus=4, **_NODE)
        made.wait_for_nodes()
        yield made
    finally:
        with contextlib.suppress(Exception):  # where a test has killed it
            made.shutdown()
        for each in own_processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()


def own_processes() -> list[psutil.Process]:
    """Those of the cluster, and a command that draws with it."""
    found = []
    for each in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if each.pid != os.getpid() and each.environ().get(_MARK) == os.environ[_MARK]:
                found.append(each)
    return found


def command(address: str, folder: Path, cwd: Path, workers: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_gcs_rpc_server_reconnect_timeout_s": "5"}
    words = ["batch", "a.jsonl", *SIZE, "--output", str(folder), "--ray", address, "--workers", str(workers)]
    with (cwd / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "max_zimage", *words], cwd=cwd, env=environment, stdout=log, stderr=log
        )


def test_a_few_rows_on_a_cluster_of_this_machine(embedded: Pair, tmp_path: Path) -> None:
    """The least that Ray does: it starts, an actor draws what one process draws, and nothing is left."""
    file, folder = write_lines(tmp_path / "a.jsonl", rows_of(4)), tmp_path / "out"
    with command("local", folder, tmp_path, 1) as process:
        try:
            assert process.wait(timeout=900) == 0, (tmp_path / "log").read_text()
        finally:
            process.kill()
    assert digests(folder) == digests(plain(embedded, file, tmp_path / "plain"))
    assert not [each for each in results(folder) if each["error"]]


@pytest.mark.slow
def test_a_small_job_on_one_node(embedded: Pair, tmp_path: Path) -> None:
    """The same bytes as where one process draws, though the actor that drew ends amid the job."""
    file = write_lines(tmp_path / "a.jsonl", rows_of(18))
    folder = tmp_path / "out"
    with cluster(1) as made, command(made.address, folder, tmp_path, 1) as process:
        try:
            wait_for(lambda: drawn(folder) >= 2, process, tmp_path / "log")
            (actor,) = actors()
            actor.kill()
            assert process.wait(timeout=900) == 0, (tmp_path / "log").read_text()
        finally:
            process.kill()
    assert digests(folder) == digests(plain(embedded, file, tmp_path / "plain"))
    assert not [each for each in results(folder) if each["error"]]


def actors() -> list[psutil.Process]:
    """Those that draw."""
    found = []
    for each in own_processes():
        with contextlib.suppress(psutil.Error):
            if "RayDrawer" in " ".join(each.cmdline()) or (each.name().startswith("ray::") and _is_large(each)):
                found.append(each)
    return found


def _is_large(process: psutil.Process) -> bool:
    """Whether it has loaded a model."""
    return bool(process.memory_info().rss > 450 * 2**20)


def drawn(folder: Path) -> int:
    """Pictures that are there."""
    return len([*folder.glob("pictures/*/*.png"), *folder.glob("work/0*/*.png")])


def wait_for(reached: Any, process: subprocess.Popen[bytes], log: Path, seconds: float = 600) -> bool:
    """Whether something came about before the command ended."""
    end = time.monotonic() + seconds
    while not reached():
        if process.poll() is not None:
            return False
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.02)
    return True


@pytest.mark.slow
def test_ten_ends_cost_no_picture(embedded: Pair, tmp_path: Path) -> None:
    """Actors, worker nodes and the head, in turn, at moments that nobody chose.

    `MAX_ZIMAGE_JOB_ROWS` has other numbers of rows than 500.
    """
    count, random, kills = int(os.environ.get("MAX_ZIMAGE_JOB_ROWS", "500")), Random(26), 0
    file = write_lines(tmp_path / "a.jsonl", rows_of(count))
    reference = plain(embedded, file, tmp_path / "plain")
    folder, log = tmp_path / "out", tmp_path / "log"
    while True:
        with cluster(2) as made, command(made.address, folder, tmp_path, 2) as process:
            try:
                while kills < 10:
                    more = drawn(folder) + random.randrange(1, max(2, count // 16))
                    if not wait_for(lambda: drawn(folder) >= more, process, log):  # noqa: B023  (called at once)
                        break
                    time.sleep(random.random())
                    kills += 1
                    if kills % 3 == 0:
                        made.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
                        break
                    if kills % 3 == 1:
                        for each in actors()[:1]:
                            each.kill()
                    else:
                        made.remove_node(random.choice(sorted(made.worker_nodes, key=str)), allow_graceful=False)
                        made.add_node(num_cpus=4, **_NODE)
                if kills % 3 == 0 and kills < 10:
                    process.kill()  # a command whose head is gone ends by itself, minutes later
                code = process.wait(timeout=1800)
            finally:
                process.kill()
        if code == 0:
            break
    assert kills == 10, f"only {kills} ends in {count} rows; more rows leave more time"
    found = digests(folder)
    assert len(found) == count
    assert None not in found.values()
    assert found == digests(reference)
    assert {path.name for path in folder.rglob("*.png")} == {Path(each["path"]).name for each in results(folder)}
