"""The wheel holds all it takes to draw a picture, and nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from max_zimage.serving.http import static_files
from tests.house.rules import read_toml
from tests.paths import ROOT

MAX_BYTES = 40 * 1024 * 1024


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from the source distribution, so that both must be complete."""
    target = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(target), str(ROOT)]
    result = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    (path,) = target.glob("*.whl")
    assert path.stat().st_size < MAX_BYTES
    return zipfile.ZipFile(path)


def below(folder: str) -> set[str]:
    """Files of the checkout below a folder, with slashes, without what running leaves behind."""
    paths = (path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT).as_posix() for path in paths}


def test_it_holds_the_folders_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    inside = {f"max_zimage/{name}" for folder in ("graphs", "kernels") for name in below(folder)}
    assert names == below("max_zimage") | inside
    assert {"max_zimage/py.typed", "max_zimage/graphs/py.typed", "max_zimage/kernels/README.md"} <= names


def test_the_page_is_in_it(wheel: zipfile.ZipFile) -> None:
    page = static_files.FOLDER.relative_to(ROOT).as_posix()
    for path in static_files.FOLDER.rglob("*.*"):
        name = f"{page}/{path.relative_to(static_files.FOLDER).as_posix()}"
        assert wheel.read(name) == path.read_bytes()
    assert {f"{page}/index.html", f"{page}/js/app.js", f"{page}/css/base.css"} <= set(wheel.namelist())


def test_the_embedded_model_is_whole(wheel: zipfile.ZipFile) -> None:
    model = "max_zimage/assets/tiny-zimage"
    weights = ["text_encoder/model", "transformer/diffusion_pytorch_model", "vae/diffusion_pytorch_model"]
    for name in [f"{model}/{weight}.safetensors" for weight in weights]:
        assert wheel.read(name) == (ROOT / name).read_bytes()
        assert wheel.getinfo(name).file_size > 1_000_000
    assert f"{model}/tokenizer/tokenizer.json" in wheel.namelist()
    assert f"{model}/README.md" in wheel.namelist()


def test_the_embedded_text_model_is_whole(wheel: zipfile.ZipFile) -> None:
    model = "max_zimage/assets/tiny-diffusion-gemma"
    for path in (ROOT / model).iterdir():
        assert wheel.read(f"{model}/{path.name}") == path.read_bytes()
    needed = {"README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors"}
    needed |= {"tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in (ROOT / model).iterdir()} == needed


def test_it_names_its_command_licence_and_needs(wheel: zipfile.ZipFile) -> None:
    (entry_points,) = [name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt")]
    scripts = ConfigParser()
    scripts.read_string(wheel.read(entry_points).decode())
    assert dict(scripts["console_scripts"]) == {"max-zimage": "max_zimage.cli.main:start"}
    info = Path(entry_points).parent.as_posix()
    assert wheel.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    metadata = wheel.read(f"{info}/METADATA").decode()
    wanted = {Requirement(each) for each in read_toml(ROOT / "pyproject.toml")["project"]["dependencies"]}
    assert {Requirement(each) for each in re.findall(r"^Requires-Dist: ([^;\n]+)$", metadata, re.MULTILINE)} == wanted
