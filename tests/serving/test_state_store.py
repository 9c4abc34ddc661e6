"""Where requests and pictures are kept: whole, sealed, for a time, within a bound."""

from __future__ import annotations

import asyncio
import os
import stat
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest

from max_zimage.cli.main import main
from max_zimage.serving.addresses import store_address
from max_zimage.serving.store import state_store
from max_zimage.serving.store.files import StoreError, StoreFiles
from max_zimage.serving.store.sealed import Entry, Seal, SealError
from max_zimage.serving.store.state_store import PICTURES, StateStore, TooLarge

T = TypeVar("T")


def of(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def opened(address: str, key: str | None = "key", room: int = 10_000, seconds: float = 60.0) -> StateStore:
    return StateStore(StoreFiles(address), Seal(key), room=room, seconds=seconds)


def shared(folder: Path) -> str:
    return f"file://{folder}/state"


def kept(folder: Path) -> list[Path]:
    """Every file of a store in a folder."""
    return [each for each in (folder / "state").rglob("*") if each.is_file()]


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_what_was_put_is_there_and_nothing_else(kind: str, tmp_path: Path) -> None:
    store = opened("memory" if kind == "memory" else shared(tmp_path))
    assert store.is_shared == (kind == "file")
    name = of(store.put_picture(b"\x00\n\xff", "image/webp"))
    found = of(store.picture(name))
    assert found is not None
    assert (found.content, found.kind) == (b"\x00\n\xff", "image/webp")
    assert of(store.picture(name + "x")) is None
    assert of(store.picture("../pictures/" + name)) is None
    of(store.put_request("a", {"run": "1", "answer": {}}))
    of(store.put_request("a", {"run": "2", "answer": {}}))
    facts = of(store.request("a"))
    assert facts is not None
    assert facts["run"] == "2"
    assert abs(facts["written"] - time.time()) < 10
    assert of(store.request("b")) is None
    of(store.ask_to_cancel("a", "2"))
    assert of(store.wishes(["b"])) == {}
    assert of(store.wishes(["a", "b"])) == {"a": "2"}
    assert of(store.wishes(["a", "b"])) == {}


def test_two_stores_in_memory_share_nothing() -> None:
    name = of(opened("memory").put_picture(b"x", "image/png"))
    assert of(opened("memory").picture(name)) is None


def test_another_process_finds_it_and_another_key_does_not(tmp_path: Path) -> None:
    name = of(opened(shared(tmp_path)).put_picture(b"x", "image/png"))
    assert of(opened(shared(tmp_path)).picture(name)) is not None
    for key in ("another", None):
        assert of(opened(shared(tmp_path), key).picture(name)) is None
    text = " ".join(map(str, kept(tmp_path)))
    assert name not in text
    if os.name == "posix":
        folders = (tmp_path / "state", *(tmp_path / "state").iterdir())
        assert {stat.S_IMODE(each.stat().st_mode) for each in folders} == {0o700}
        assert sorted(each.name for each in folders[1:]) == ["cancels", "currents", "pictures", "requests"]


def test_damaged_and_foreign_files_are_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = opened(shared(tmp_path))
    first, second = (of(store.put_picture(content, "image/png")) for content in (b"first", b"second"))
    seal = Seal("key")
    file, other = (tmp_path / "state" / seal.path(PICTURES, name) for name in (first, second))
    whole = file.read_bytes()
    planted = [
        b"",
        whole[:-1],
        whole + b"x",
        whole.replace(b"first", b"worst"),
        whole.replace(b"image/png", b"text/html"),
        b"\x89PNG of somebody else",
        other.read_bytes(),  # of the same server, for another place
        Seal("another").closed(seal.path(PICTURES, first), Entry({"kind": "image/png", "written": time.time()}, b"x")),
    ]
    for content in planted:
        caplog.clear()
        file.write_bytes(content)
        assert of(store.picture(first)) is None
        assert "is not taken: it is damaged, or comes from elsewhere" in caplog.text
    file.write_bytes(seal.closed(seal.path(PICTURES, first), Entry({"kind": "text/html", "written": time.time()})))
    assert of(store.picture(first)) is None
    file.write_bytes(whole)
    assert of(store.picture(first)) is not None


def test_every_byte_of_a_seal_counts() -> None:
    seal, path = Seal(None), "pictures/x"
    whole = seal.closed(path, Entry({"kind": "image/png"}, b"content"))
    assert seal.opened(path, whole) == Entry({"kind": "image/png"}, b"content")
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        with pytest.raises(SealError):
            seal.opened(path, bytes(damaged))
    with pytest.raises(SealError):
        seal.opened("pictures/y", whole)


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_the_oldest_go_first_when_room_is_used_up(kind: str, tmp_path: Path) -> None:
    store = opened("memory" if kind == "memory" else shared(tmp_path), room=5000)
    names = []
    for index in range(6):
        names.append(of(store.put_picture(bytes(1000), "image/png")))
        time.sleep(0.02)  # the clock of a file system
        assert sum(each is not None for each in map(of, map(store.picture, names))) == min(index + 1, 4)
    assert [of(store.picture(name)) is not None for name in names] == [False, False, True, True, True, True]
    with pytest.raises(TooLarge):
        of(store.put_picture(bytes(5000), "image/png"))
    assert of(store.picture(names[-1])) is not None  # what cannot be kept makes no room


def test_several_replicas_keep_to_one_room(tmp_path: Path) -> None:
    replicas = [opened(shared(tmp_path), room=64_000) for _ in range(3)]
    for turn in range(60):
        of(replicas[turn % 3].put_picture(bytes(3000), "image/png"))
        # Each looks again when it has written a sixteenth of the room, which is at most two pictures here.
        assert sum(each.stat().st_size for each in kept(tmp_path)) <= 64_000 + 2 * 2 * 3300


def test_what_is_too_old_is_gone_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(shared(tmp_path), seconds=0.2)
    name = of(store.put_picture(b"x", "image/png"))
    of(store.put_request("a", {}))
    assert of(store.picture(name)) is not None
    (unfinished := tmp_path / "state" / PICTURES / f".new-{'0' * 8}-{'1' * 40}").write_bytes(b"half")
    os.utime(unfinished, (1.0, 1.0))
    time.sleep(0.3)
    assert of(store.picture(name)) is None
    assert of(store.request("a")) is None
    assert len(kept(tmp_path)) == 3
    of(store.sweep())  # it has just looked
    assert len(kept(tmp_path)) == 3
    monkeypatch.setattr(state_store, "_SWEEP", 0.0)
    of(store.sweep())
    assert kept(tmp_path) == []


def test_files_of_others_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is given a folder with pictures in it removes what it wrote, and nothing else."""
    monkeypatch.setattr(state_store, "_SWEEP", 0.0)
    folder = tmp_path / "state" / PICTURES
    folder.mkdir(parents=True)
    names = ("holiday.jpg", ".new-year.jpg", "0" * 39, "0" * 40 + ".png", ".new-holiday-" + "0" * 40)
    foreign = [folder / name for name in names]
    own = folder / f".new-{'0' * 16}", folder / f".new-{'0' * 8}-.new-{'0' * 16}"  # of a trial that was interrupted
    for each in (*foreign, *own):
        each.write_bytes(bytes(9000))
        os.utime(each, (1.0, 1.0))
    store = opened(shared(tmp_path), seconds=0.2)
    first, second = (of(store.put_picture(bytes(3000), "image/png")) for _ in range(2))
    assert None not in (of(store.picture(first)), of(store.picture(second)))  # there is room for both
    time.sleep(0.3)
    of(store.sweep())
    assert sorted(kept(tmp_path)) == sorted(foreign)


def test_who_reads_while_others_write_sees_a_whole_file(tmp_path: Path) -> None:
    """Fifty versions of one record, each of another length, read all the while."""
    store = opened(shared(tmp_path), room=10_000_000)

    async def body() -> int:
        await store.put_request("a", {"run": 0, "text": ""})
        seen, writing = 0, True

        async def write() -> None:
            nonlocal writing
            for run in range(1, 50):
                await store.put_request("a", {"run": run, "text": "x" * (run % 7) * 20_000})
            writing = False

        async def read() -> None:
            nonlocal seen
            while writing:
                facts = await store.request("a")
                assert facts is not None
                assert len(facts["text"]) == facts["run"] % 7 * 20_000
                seen += 1

        await asyncio.gather(write(), read())
        return seen

    assert of(body()) > 10
    assert len(kept(tmp_path)) == 1


def test_a_store_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened("memory")
    monkeypatch.setattr(state_store, "_PATIENCE", 0.05)
    monkeypatch.setattr(store._files, "get", lambda path: time.sleep(0.5))
    with pytest.raises(StoreError, match=r"did not answer within 0\.05 s"):
        of(store.request("a"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("/shared", 'must be "memory" or a URL such as file:///shared/state'),
        ("file://shared", "must have three slashes and the whole path"),
        ("file:///", 'must be "memory" or a URL'),
        ("simplecache::s3://bucket/x", 'must be "memory" or a URL'),
        ("memory://x", 'must be "memory" for a store that goes with the process'),
    ],
)
def test_addresses_that_are_none(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        store_address(text)


def test_addresses_as_they_are_kept() -> None:
    assert store_address("file:///shared/state/") == "file:///shared/state"
    assert store_address("s3://bucket/zimage") == "s3://bucket/zimage"


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("nonsense://x", "Protocol not known: nonsense"),
        ("file:///proc/state", "cannot be written to"),
        ("data://x", "cannot be"),
    ],
)
def test_a_store_that_cannot_be_used_is_refused_before_anything_is_loaded(
    address: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--port", "0", "--state-store", address]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"max-zimage: error: --state-store {address} cannot be")
    assert says in said
    assert said.endswith("name another, or leave it out for one in memory\n")


def test_a_store_that_loses_what_is_written_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StoreFiles, "get", lambda self, path: b"first")
    with pytest.raises(StoreError, match="does not give back what was written to it"):
        opened("memory")
