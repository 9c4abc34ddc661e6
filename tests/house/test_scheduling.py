"""Files of tests that share something dear stand in the list of those that go to one process."""

from __future__ import annotations

import ast
from types import SimpleNamespace
from typing import Any

import pytest

from tests.paths import ROOT
from tests.scheduling import SECONDS, TOGETHER, Scheduling, place_of


def users(fixture: str) -> set[str]:
    """Files with a function that begins as tests and fixtures do and has the fixture, but none of its own name."""
    found = set()
    for file in (ROOT / "tests").rglob("test_*.py"):
        text = file.read_text(encoding="utf-8")
        defined = (
            [each for each in ast.walk(ast.parse(text)) if isinstance(each, ast.FunctionDef)] if fixture in text else []
        )
        asks = any(
            each.name.startswith("test_") or each.decorator_list
            for each in defined
            if fixture in {argument.arg for argument in each.args.args}
        )
        if asks and fixture not in {each.name for each in defined}:
            found.add(file.relative_to(ROOT).as_posix())
    return found


@pytest.mark.parametrize(
    ("group", "fixture"), [("one server", "server"), ("ops of a CPU", "compiled_ops"), ("bodies by chance", "narrow")]
)
def test_who_shares_something_goes_to_one_process(group: str, fixture: str) -> None:
    assert users(fixture) == set(TOGETHER[group])


def test_what_is_named_is_there() -> None:
    page = {file.relative_to(ROOT).as_posix() for file in (ROOT / "tests/serving/page").glob("test_*.py")}
    assert page == set(TOGETHER["the page"])
    named = [file for files in TOGETHER.values() for file in files]
    assert len(named) == len(set(named))
    assert [each for each in (*named, *(SECONDS.keys() - TOGETHER.keys())) if not (ROOT / each).is_file()] == []
    assert TOGETHER.keys() <= SECONDS.keys()


def test_the_longest_come_first_long_ones_last_and_groups_stay_whole() -> None:
    """What a process is given at once, by xdist's own scheduling."""
    page, alone = TOGETHER["the page"], "tests/batch/test_local.py"
    tests = ["tests/a.py::one", f"{page[0]}::one", f"{alone}::one", "tests/b.py::one", f"{page[1]}::two"]
    tests += [f"{page[0]}::three[x::y]", "tests/a.py::two"]
    tests.sort(key=place_of)
    files = [each.partition("::")[0] for each in tests]
    assert files == [page[0], page[1], page[0], "tests/a.py", "tests/b.py", "tests/a.py", alone]

    class Node:
        shutting_down = False
        gateway = SimpleNamespace(id="gw")

        def __init__(self) -> None:
            self.given: list[int] = []

        def send_runtest_some(self, indices: list[int]) -> None:
            self.given += indices

        def shutdown(self) -> None:
            pass

    options = SimpleNamespace(loadscopereorder=True, tx=["popen", "popen"], maxfail=0)
    config: Any = SimpleNamespace(option=options, getvalue=lambda name: getattr(options, name))
    scheduling, nodes = Scheduling(config), [Node(), Node()]
    for node in nodes:
        scheduling.add_node(node)
        scheduling.add_node_collection(node, tests)
    scheduling.schedule()
    first, second = ([tests[index] for index in node.given] for node in nodes)
    assert first == tests[:3]
    assert second == ["tests/a.py::one", "tests/a.py::two", "tests/b.py::one"]
