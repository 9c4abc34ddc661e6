"""Rooms import in one direction, nothing imports in a circle, and few files stand beside the rooms."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import structure
from tests.paths import ROOT

IMPORTS = structure.import_graph(ROOT)


def test_rooms_import_those_behind_them() -> None:
    assert structure.against_the_order(IMPORTS) == []


def test_nothing_is_imported_in_a_circle() -> None:
    assert structure.circles(IMPORTS) == []


def test_few_files_stand_beside_the_rooms() -> None:
    assert len(structure.flat_files(ROOT)) <= structure.MAX_FLAT_FILES
    folders = {path.name for path in (ROOT / "max_zimage").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders - {"assets"} == set(structure.ROOMS)


def plant(root: Path, **files: str) -> structure.Imports:
    for name, code in files.items():
        file = root / (name.replace("__", "/") + ".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(code)
    return structure.import_graph(root)


@pytest.mark.parametrize(
    ("file", "code", "imported"),
    [
        ("max_zimage__device__x", "from max_zimage.pipeline.y import z", "max_zimage.pipeline.y"),
        ("max_zimage__device__x", "def f():\n    import max_zimage.pipeline.y", "max_zimage.pipeline.y"),
        ("max_zimage__device__x", "if TYPE_CHECKING:\n    from max_zimage.pipeline import y", "max_zimage.pipeline.y"),
        ("max_zimage__leaf", "from max_zimage.pipeline import y", "max_zimage.pipeline.y"),
        ("max_zimage__cli__x", "from max_zimage import arch", "max_zimage.arch"),
        ("graphs__model__x", "from max_zimage.sampling import s", "max_zimage.sampling.s"),
    ],
)
def test_a_planted_import_is_found(tmp_path: Path, file: str, code: str, imported: str) -> None:
    good = {"max_zimage__pipeline__y": "from max_zimage.device import d\nfrom max_zimage.graphs.model import m"}
    others = dict.fromkeys(
        ("max_zimage__device__d", "graphs__model__m", "max_zimage__sampling__s", "max_zimage__arch"), ""
    )
    assert structure.against_the_order(plant(tmp_path, **good, **others)) == []
    (found,) = structure.against_the_order(plant(tmp_path, **{file: code}))
    module = file.replace("__", ".")
    assert found == f"{module if module.startswith('max') else f'max_zimage.{module}'} imports {imported}"


def test_a_planted_circle_is_found(tmp_path: Path) -> None:
    imports = plant(
        tmp_path,
        max_zimage__host__a="from max_zimage.host import b",
        max_zimage__host__b="def f():\n    from max_zimage.host.c import d",
        max_zimage__host__c="if TYPE_CHECKING:\n    from max_zimage.host.a import e",
        max_zimage__host__d="from max_zimage.host.a import e",
    )
    assert structure.circles(imports) == [["max_zimage.host.a", "max_zimage.host.b", "max_zimage.host.c"]]


def test_files_that_name_something_are_counted(tmp_path: Path) -> None:
    plant(tmp_path, max_zimage__host__a="x = shift", max_zimage__host__b="'shift'", max_zimage__host__c="shifted = 1")
    assert structure.naming(tmp_path, "shift") == ["max_zimage/host/a.py", "max_zimage/host/b.py"]
    assert structure.naming(tmp_path, "'shift'") == ["max_zimage/host/b.py"]


@pytest.mark.parametrize("room", ["images", "request", "sampling", "text"])
def test_rooms_that_need_no_max_load_none(room: str) -> None:
    modules = [module for module in IMPORTS if structure.room(module) == room and module.count(".") > 1]
    program = "import sys\n" + "".join(f"import {module}\n" for module in modules)
    program += "print(sorted(name for name in sys.modules if name.split('.')[0] == 'max'))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
