"""The house keeps its own rules: directions of imports, sizes, one list of tasks, exact versions."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from benchmarks import size
from max_zimage.diagnosis.installation import FIRST_WITHOUT, OLDEST_PYTHON
from tests.house.rules import (
    MAY_IMPORT,
    graphs_without_package,
    import_violations,
    make_tasks,
    mojo_names_elsewhere,
    pins,
    pixi_tasks,
    ranges,
    read_toml,
    third_party_modules,
)
from tests.paths import ROOT

PYPROJECT = read_toml(ROOT / "pyproject.toml")
RUNTIME = ranges(PYPROJECT["project"]["dependencies"])
TEST = pins(PYPROJECT["project"]["optional-dependencies"]["test"])
EXTRAS = {name: ranges(PYPROJECT["project"]["optional-dependencies"][name]) for name in ("verify", "batch", "ray")}
JOBS = ranges([each for extra in ("batch", "ray") for each in PYPROJECT["project"]["optional-dependencies"][extra]])
CONSTRAINTS = pins(
    [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
)


def test_imports_keep_their_directions() -> None:
    assert import_violations(ROOT) == []


@pytest.mark.parametrize(
    ("file", "code", "module"),
    [
        ("graphs/bad.py", "from max_zimage import progress", "max_zimage.progress"),
        (
            "graphs/deep/bad.py",
            "def f():\n    import max_zimage.checkpoint.config as c",
            "max_zimage.checkpoint.config",
        ),
        ("graphs/bad.py", "from max import pipelines", "max.pipelines"),
        ("graphs/bad.py", "if TYPE_CHECKING:\n    from safetensors.numpy import load", "safetensors.numpy.load"),
        ("graphs/bad.py", "from kernels import op", "kernels.op"),
        ("max_zimage/bad.py", "try:\n    import torch\nexcept ImportError:\n    pass", "torch"),
        ("max_zimage/sub/bad.py", "from diffusers.models import x", "diffusers.models.x"),
        ("max_zimage/bad.py", "from tests.references.scenes import recognize", "tests.references.scenes.recognize"),
        ("max_zimage/bad.py", "import benchmarks", "benchmarks"),
        ("tests/bad.py", "import kernels", "kernels"),
    ],
)
def test_a_planted_import_is_found(tmp_path: Path, file: str, code: str, module: str) -> None:
    allowed = "import max.graph\nfrom max_zimage.graphs import dims\nfrom . import other\n"
    for good in MAY_IMPORT:
        (tmp_path / good).mkdir()
        (tmp_path / good / "good.py").write_text(allowed)
    assert import_violations(tmp_path) == []
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(code)
    (found,) = import_violations(tmp_path)
    assert found.startswith(f"{file}:")
    assert found.endswith(f" imports {module}")


def test_no_script_can_stand_before_graphs(tmp_path: Path) -> None:
    """Only under its name inside the package does it have no competitor on the path."""
    assert graphs_without_package(ROOT) == []
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "a.py").write_text("from graphs.dims import x\nfrom max_zimage.graphs import y\n")
    assert graphs_without_package(tmp_path) == ["tests/a.py:1 imports graphs.dims.x"]
    code = "from max_zimage.graphs import dims; import sys; print(dims.__name__, 'graphs' in sys.modules)"
    (tmp_path / "graphs.py").write_text("raise ImportError('of somebody else')")
    (tmp_path / "script.py").write_text(code)
    ran = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True)
    assert ran.stdout == "max_zimage.graphs.dims False\n", ran.stderr


def test_mojo_ops_are_named_in_one_place(tmp_path: Path) -> None:
    assert mojo_names_elsewhere(ROOT) == []
    (tmp_path / "graphs").mkdir()
    (tmp_path / "graphs" / "ops.py").write_text("ops.custom('a')")
    (tmp_path / "graphs" / "vae.py").write_text("x = 1\ny = ops.custom('a')\n")
    assert mojo_names_elsewhere(tmp_path) == ["graphs/vae.py:2 y = ops.custom('a')"]


def test_kernels_hold_mojo_only() -> None:
    suffixes = {path.suffix for path in (ROOT / "kernels").rglob("*") if path.is_file()}
    assert suffixes <= {".mojo", ".md"}


def test_files_and_functions_are_short() -> None:
    files = [file for folder in size.FOLDERS for file in size.measure(ROOT, folder)]
    assert {"max_zimage/images/save.py", "tests/house/test_house.py"} <= {file.name for file in files}
    assert size.excesses(files) == []
    assert {file.name for file in files} >= size.TABLES


def test_the_size_tool_counts_and_complains(tmp_path: Path) -> None:
    (tmp_path / "graphs").mkdir()
    long = "def long():\n" + "    x = 1\n" * 60
    (tmp_path / "graphs" / "a.py").write_text(long + "\n\n\nclass A:\n    async def short(self):\n        pass\n" * 60)
    (tmp_path / "graphs" / "b.mojo").write_text(
        "@register\nstruct A:\n    @static\n    def run[\n        w: Int\n    ](\n        x: Int,\n    ) raises:\n"
        "        def body():\n            pass\n\n        body()\n\n    def next():\n        pass\n\nvar x = 1\n"
    )
    python, mojo = size.measure(tmp_path, "graphs")
    assert size.excesses([python, mojo]) == [
        f"graphs/a.py: {python.lines} lines, at most 300",
        "graphs/a.py:1 long: 61 lines, at most 60",
    ]
    assert [(item.name, item.line, item.length) for item in mojo.functions] == [
        ("run", 4, 9),
        ("body", 9, 2),
        ("next", 14, 2),
    ]


def test_make_and_pixi_have_the_same_tasks() -> None:
    tasks = make_tasks(ROOT)
    assert tasks == pixi_tasks(ROOT)
    wanted = {
        "fmt",
        "lint",
        "types",
        "test",
        "fuzz",
        "bench",
        "report",
        "docs",
        "quality",
        "profile",
        "size",
        "wheel-check",
        "embedded-model",
        "text-model",
    }
    wanted |= {"generate", "serve", "compile", "info", "gpu-run", "gpu-compile", "gpu-pack"}
    assert set(tasks) == wanted


def stand_in_make(tmp_path: Path, *arguments: str) -> str:
    """What `make generate` prints with a finished environment whose max-zimage prints its arguments."""
    environment = tmp_path / "venv"
    (environment / "bin").mkdir(parents=True)
    command = environment / "bin" / "max-zimage"
    command.write_text(f"#!{sys.executable}\nimport sys\nprint(repr(sys.argv[1:]))\n")
    command.chmod(0o755)
    for stamp in ("bin/pip", ".runtime", ".test"):
        (environment / stamp).touch()
    # `make test` hands its own flags and variables down to every make below it.
    inherited = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES", "PROMPT", "ARGS"}
    variables = {name: value for name, value in os.environ.items() if name not in inherited}
    words = ["make", "--silent", "-C", str(ROOT), f"VENV={environment}", "generate", *arguments]
    return subprocess.run(words, capture_output=True, text=True, check=True, env=variables).stdout


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="needs make, which pixi users may not have")


@needs_make
@pytest.mark.parametrize(
    "prompt",
    [
        "a red star on a blue background",
        """it's "quoted" and \\ `odd` $HOME $(shell echo no) $5 #tag ; * ~ ! % 100%""",
        "two\nlines\tand \u7ea2\u8272",
    ],
)
def test_make_passes_a_prompt_on_as_it_is(tmp_path: Path, prompt: str) -> None:
    printed = stand_in_make(tmp_path, f"PROMPT={prompt}", "ARGS=--seed 3 --negative 'a b'")
    assert printed == repr(["generate", prompt, "--seed", "3", "--negative", "a b"]) + "\n"


@needs_make
def test_a_second_make_generate_installs_nothing(tmp_path: Path) -> None:
    assert stand_in_make(tmp_path, "--dry-run", "PROMPT=x").split() == ["max-zimage", "generate", '"$PROMPT"']


@needs_make
def test_make_without_a_prompt_leaves_it_to_the_command(tmp_path: Path) -> None:
    assert stand_in_make(tmp_path) == repr(["generate"]) + "\n"


def test_versions_agree() -> None:
    """MAX and what tests need are exact; all else has both ends, between which the tested version lies."""
    assert str(RUNTIME["modular"]) == f"=={CONSTRAINTS['modular']}"
    assert all(TEST.values())
    assert CONSTRAINTS.items() >= TEST.items()
    assert all(CONSTRAINTS.values())
    for name, allowed in (RUNTIME | EXTRAS["verify"] | JOBS).items():
        assert allowed.contains(CONSTRAINTS[name]), f"{name}{allowed} does not allow {CONSTRAINTS[name]}"
        ends = {each.operator for each in allowed}
        assert ends == ({"=="} if name == "modular" else {">=", "<"}), f"{name}{allowed} needs both ends"
    assert {name: TEST[name] for name in EXTRAS["verify"]} == {name: CONSTRAINTS[name] for name in EXTRAS["verify"]}
    assert pins(PYPROJECT["build-system"]["requires"]) == {"hatchling": TEST["hatchling"]}


def test_pixi_takes_its_versions_from_pyproject() -> None:
    manifest = read_toml(ROOT / "pixi.toml")
    name = PYPROJECT["project"]["name"]
    checkout = {"path": ".", "editable": True}
    assert manifest["workspace"]["name"] == name
    assert manifest["pypi-dependencies"] == {name: checkout}
    assert manifest["feature"]["test"]["pypi-dependencies"] == {name: checkout | {"extras": ["test"]}}
    assert manifest["dependencies"] == {"python": "3.11.*"}
    assert PYPROJECT["project"]["requires-python"] == ">=3.11"
    pythons = [each.rpartition(" ")[2] for each in PYPROJECT["project"]["classifiers"] if "Python :: 3." in each]
    assert pythons == ["3.11", "3.12", "3.13", "3.14"]
    assert (pythons[0], pythons[-1]) == (f"3.{OLDEST_PYTHON[1]}", f"3.{FIRST_WITHOUT[1] - 1}")
    assert PYPROJECT["tool"]["mypy"]["python_version"] == "3.11"


@pytest.mark.parametrize("folder", list(MAY_IMPORT))
def test_what_is_imported_is_declared(folder: str) -> None:
    declared = set(RUNTIME) | (set(TEST) if folder in ("tests", "benchmarks") else set().union(*EXTRAS.values()))
    # The distribution modular is a name for these, which it pins to its own version.
    declared |= {"max", "max-core", "mojo-compiler"}
    owners = packages_distributions()
    for module in third_party_modules(ROOT, folder) - sys.stdlib_module_names:
        names = set(pins(owners.get(module, [])))
        assert names & declared, f"{folder} imports {module}, which pyproject.toml does not name"


def tracked_texts() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    binary = {".safetensors", ".npz", ".png", ".jpg", ".webp"}
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [path for path in paths if path.suffix not in binary and path.name != "LICENSE" and path.is_file()]


def test_no_path_of_one_machine_and_no_registry_is_named() -> None:
    # Put together here so that this file does not hold what it looks for.
    folders = "|".join(["work", "tmp", "root", "home"])
    hosts = "|".join(name + r"\.org" for name in ("pypi", "pythonhosted")) + "|" + "conda" + r"\.modular"
    forbidden = re.compile(rf"(?<![\w.\-}}])/(?:{folders})/|{hosts}")
    found = [
        f"{path.relative_to(ROOT)}:{number} {line.strip()[:80]}"
        for path in tracked_texts()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if forbidden.search(line)
    ]
    assert found == []
