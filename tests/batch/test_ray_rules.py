"""What a job does on a cluster, without one: which units go together, what is told to whom, and when it gives up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from max_zimage.batch import ray_data
from max_zimage.batch.drawing import Drawing
from max_zimage.batch.output import Output
from max_zimage.batch.ray_data import PASSED_ON, Cluster, RayData, waves
from max_zimage.batch.record_book import RecordBook
from max_zimage.batch.records import record
from max_zimage.batch.work import Item, JobError, Report, Unit


def unit_of(row: int, **more: Any) -> Unit:
    return Unit.of(0, [Item(row=row, picture=0, id=str(row), request="{}", **more)])


def test_waves_are_bounded_by_bytes() -> None:
    picture = b"x" * (30 * 2**20)
    units = [unit_of(row, sources={"image": picture + bytes([row])}) for row in range(5)]
    assert [len(wave) for wave in waves(iter(units))] == [3, 2]
    small = [unit_of(row) for row in range(5000)]
    found = list(waves(iter(small)))
    assert [len(wave) for wave in found] == [4096, 904]
    assert [unit for wave in found for unit in wave] == small


def test_no_key_is_told_to_a_cluster() -> None:
    assert not [name for name in PASSED_ON if any(word in name for word in ("KEY", "TOKEN", "SECRET", "ENDPOINT"))]


class FakeRay:
    """A cluster of the nodes "a" and "b"."""

    def nodes(self) -> list[dict[str, Any]]:
        return [{"NodeID": "a", "Alive": True}, {"NodeID": "b", "Alive": True}, {"NodeID": "c", "Alive": False}]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> RayData:
    monkeypatch.setattr(ray_data, "ray", FakeRay)
    return RayData(Drawing(url="x", run="run"), Cluster(address="auto"))


def test_machines_that_are_lost_count_against_no_unit_unless_there_are_many(tmp_path: Path, cluster: RayData) -> None:
    book, unit = RecordBook(Output(str(tmp_path)), "run"), unit_of(0)

    def begin(place: str) -> None:
        RecordBook(book.output, "run", place).begin(unit)

    def left() -> tuple[list[Unit], Report | None]:
        return cluster._left(unit, "it", book, cluster._tries([unit], book)[unit.key])

    for _ in range(6):
        begin("c")
    assert left() == ([unit], None)
    begin("a")
    ([again], none) = left()
    assert (again.tries, none) == (1, None)
    begin("c")
    more, report = left()
    assert more == []
    assert report == Report(window=0, name=unit.name, pictures=0, failed=1)
    assert book.sentences(unit) == ["0: 2 processes ended while they drew it by itself, the last one with it"]


def test_a_folder_that_is_not_shared_is_said(tmp_path: Path, cluster: RayData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_data, "_VISIBLE", 0.0)
    book, unit = RecordBook(Output(str(tmp_path)), "run"), unit_of(0)
    report = Report(window=0, name=unit.name, pictures=1, failed=0)
    monkeypatch.setattr(cluster, "_drawn", lambda _: iter([report]))
    with pytest.raises(JobError, match="--output must be a folder that all nodes share"):
        list(cluster.run(iter([unit]), book))
    book.write(unit, [record("0", 0, path="x")])
    assert list(cluster.run(iter([unit]), book)) == [report]
