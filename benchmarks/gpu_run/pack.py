"""Everything that a run needs on a machine without a network: `python -m benchmarks.gpu_run.pack KIT --work DIR`.

Three archives in KIT, each in parts that are small enough to be carried one by one, and a manifest with their digests:

    packages   MAX without its compiler, and what it, the engine and diffusers import; PyTorch, NumPy and CUDA are there
    graphs     what benchmarks.gpu_run.compile has left in DIR
    compiler   Mojo, its packages and the linker: only wanted where a graph has no artifact

`python -m benchmarks.gpu_run.unpack` puts them together again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, cast

from benchmarks.gpu_run.unpack import MANIFEST, SITE
from benchmarks.measure import ROOT, Conditions

ARCHIVES = ("packages", "graphs", "compiler")
MODULAR = ("max", "max-core", "max-mojo-libs", "mojo-compiler", "mojo-compiler-mojo-libs")
OTHERS = (
    *("annotated-types", "anyio", "attrs", "certifi", "charset-normalizer", "click", "diffusers", "filelock", "fsspec"),
    *("gguf", "h11", "httpcore", "httpx", "huggingface_hub", "idna", "jinja2", "markdown-it-py", "markupsafe", "mdurl"),
    *(
        "msgspec",
        "packaging",
        "pillow",
        "psutil",
        "pydantic",
        "pydantic_core",
        "pygments",
        "pyyaml",
        "regex",
        "requests",
    ),
    *("rich", "safetensors", "sentencepiece", "tiktoken", "tokenizers", "tqdm", "transformers", "typing-inspection"),
    *("typing_extensions", "urllib3"),
)
"""What a picture of ours and one of diffusers import, beside NumPy and PyTorch."""
COMPILER = ("modular/bin/lld", "modular/bin/mojo", "modular/lib/mojo/")
"""Beginnings of the compiler's paths."""
LEFT_OUT = ("modular/bin/", "modular/lib/nixl/")
"""What nothing here calls: crash handlers, and transports between machines."""
PLACEHOLDER = "modular/bin/mojo"
"""By this file MAX finds the folder that it is in; where only artifacts run, its contents do not matter."""
PLATFORMS = ("manylinux2014_x86_64", *(f"manylinux_2_{n}_x86_64" for n in (39, 34, 31, 28, 27, 24, 17, 12, 5)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Pack; 1 if something could not be had."""
    options = _parse(arguments)
    kit, work = options.kit.absolute(), options.work.absolute()
    kit.mkdir(parents=True, exist_ok=True)
    file = kit / MANIFEST
    manifest = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    archives = dict(manifest.get("archives", {}))
    try:
        with tempfile.TemporaryDirectory(prefix="max-zimage-pack-") as scratch:
            trees = _trees(options, Path(scratch), work)
            for name, tree in trees.items():
                begin = time.monotonic()
                archives[name] = _archived(kit, name, tree, options.part_mib << 20, options.preset)
                parts = [kit / part for part in archives[name]["parts"]]
                size = sum(part.stat().st_size for part in parts) / 2**20
                print(f"{name:10} {size:6.1f} MiB in {len(parts)} parts, {time.monotonic() - begin:.0f} s", flush=True)
    except (OSError, ValueError) as error:
        print(f"pack: {error}", file=sys.stderr)
        return 1
    ordered = {name: archives[name] for name in ARCHIVES if name in archives}
    about = {"commit": asdict(Conditions.now())["commit"], "python": options.python}
    file.write_text(json.dumps({**about, "archives": ordered}, indent=1) + "\n", encoding="utf-8")
    print(f"-> {kit}, commit {about['commit']}")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_run.pack",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kit", type=Path, metavar="KIT", help="where the parts go")
    parser.add_argument(
        "--work", type=Path, required=True, metavar="DIR", help="what benchmarks.gpu_run.compile filled"
    )
    parser.add_argument("--only", nargs="+", choices=ARCHIVES, default=ARCHIVES, help="archives that are made anew")
    parser.add_argument("--python", default="3.12", help="of the other machine (default 3.12)")
    parser.add_argument("--part-mib", type=int, default=38, metavar="N", help="most a part has (default 38)")
    parser.add_argument("--preset", type=int, default=6, metavar="N", help="of xz, 0 to 9 (default 6)")
    options = parser.parse_args(arguments)
    if options.part_mib < 1:
        parser.error(f"--part-mib must be 1 or more, got {options.part_mib}")
    return options


def _trees(options: argparse.Namespace, scratch: Path, work: Path) -> dict[str, dict[str, Path]]:
    """Archive -> path in the work folder -> file."""
    trees: dict[str, dict[str, Path]] = {}
    if {"packages", "compiler"} & set(options.only):
        downloaded(specs((ROOT / "constraints.txt").read_text(encoding="utf-8")), options.python, scratch / "wheels")
        for wheel in sorted((scratch / "wheels").glob("*.whl")):
            laid_out(wheel, scratch / SITE)
        stand_ins(scratch / SITE, scratch / "placeholder")
        compile_extensions(scratch / SITE)
        files = {
            each.relative_to(scratch / SITE).as_posix(): each for each in (scratch / SITE).rglob("*") if each.is_file()
        }
        compiler = {name: each for name, each in files.items() if name.startswith(COMPILER)}
        kept = {name: each for name, each in files.items() if not name.startswith((*COMPILER, *LEFT_OUT))}
        kept[PLACEHOLDER] = scratch / "placeholder"
        trees["packages"] = {f"{SITE}/{name}": each for name, each in kept.items()}
        trees["compiler"] = {f"{SITE}/{name}": each for name, each in compiler.items()}
    if "graphs" in options.only:
        found = [each for folder in ("graphs", "variants") for each in sorted((work / folder).glob("*.mef"))]
        if not found:
            raise ValueError(f"there are no artifacts in {work}; run benchmarks.gpu_run.compile --work {work} first")
        trees["graphs"] = {each.relative_to(work).as_posix(): each for each in found}
    return {name: tree for name, tree in trees.items() if name in options.only}


def specs(constraints: str) -> list[str]:
    """What is downloaded, at the versions that everything was tested with.

    Raises:
        ValueError: If a package has no version there.
    """
    pinned = dict(line.split("==", 1) for line in constraints.splitlines() if "==" in line and not line.startswith("#"))
    versions = {_normal(name): version for name, version in pinned.items()}
    missing = [name for name in (*MODULAR, *OTHERS) if _normal(name) not in versions]
    if missing:
        raise ValueError(f"constraints.txt has no version of {', '.join(missing)}")
    return [f"{name}=={versions[_normal(name)]}" for name in (*MODULAR, *OTHERS)]


def downloaded(wanted: Iterable[str], python: str, folder: Path) -> None:
    """Fetch wheels for the other machine from the package index; what they depend on is named too.

    Raises:
        ValueError: If there is no such wheel; says which.
    """
    flags = ["--quiet", "--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    flags += [f"--platform={platform}" for platform in PLATFORMS]
    command = [sys.executable, "-m", "pip", "download", *flags, "--dest", str(folder), *wanted]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"pip found no wheels for Python {python} on x86-64 Linux: {done.stderr.strip()[-400:]}")


def laid_out(wheel: Path, site: Path) -> None:
    """Unpack a wheel as an installer does: what is for Python and what is for the platform in one folder."""
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            folder, _, rest = info.filename.partition("/")
            kind, _, inner = rest.partition("/")
            name = info.filename
            if folder.endswith(".data"):
                if kind not in ("purelib", "platlib"):
                    continue
                name = inner
            if info.is_dir() or not name:
                continue
            path = site / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(info) as source, path.open("wb") as target:
                shutil.copyfileobj(source, target)
            path.chmod(0o755 if (info.external_attr >> 16) & 0o111 else 0o644)


def stand_ins(site: Path, placeholder: Path) -> None:
    """What MAX wants to find and nothing here uses: a library for videos, and its compiler's program."""
    (site / "av").mkdir(parents=True, exist_ok=True)
    (site / "av" / "__init__.py").write_text(_NO_VIDEO, encoding="utf-8")
    placeholder.write_text("#!/bin/sh\necho 'mojo: the compiler is not among what was packed' >&2\nexit 1\n")
    placeholder.chmod(0o755)


def compile_extensions(site: Path) -> None:
    """Compile the modules of MAX's Python packages that are Mojo sources, which it does when they are first imported.

    For any processor with AVX2: the other machine's need not have what this one's has.

    Raises:
        ValueError: If the compiler fails.
    """
    from mojo.importer import _calculate_mojo_source_hash  # part of the name that it looks for

    for source in sorted(site.rglob("*.mojo")):
        built = source.parent / "__mojocache__" / f"{source.stem}.hash-{_calculate_mojo_source_hash(source.parent)}.so"
        built.parent.mkdir(exist_ok=True)
        mojo = Path(sys.executable).with_name("mojo")
        how = ["build", str(source), "--emit", "shared-lib", "--target-cpu", "x86-64-v3", "-o", str(built)]
        done = subprocess.run([str(mojo), *how], capture_output=True, text=True)
        if done.returncode:
            raise ValueError(f"{source.name} of MAX does not compile: {done.stderr.strip()[-400:]}")


def _archived(kit: Path, name: str, tree: dict[str, Path], most: int, preset: int) -> dict[str, object]:
    """Write an archive in parts, in place of older ones; what the manifest says of it."""
    for old in kit.glob(f"{name}.[0-9][0-9]"):
        old.unlink()
    parts = _Parts(kit, name, most)
    with (
        lzma.open(cast(IO[bytes], parts), "wb", preset=preset) as stream,
        tarfile.open(fileobj=stream, mode="w|") as tar,
    ):
        for path, file in sorted(tree.items()):
            tar.add(file, arcname=path, recursive=False)
    parts.close()
    return {"parts": parts.names, "sha256": parts.digest.hexdigest(), "needed": name == "packages"}


class _Parts:
    """A file that begins a new one whenever it has reached a size."""

    def __init__(self, folder: Path, name: str, most: int) -> None:
        self._folder, self._name, self._most = folder, name, most
        self._file: IO[bytes] | None = None
        self._room = 0
        self.names: list[str] = []
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        """Append; how many bytes there were."""
        rest = memoryview(data)
        while len(rest):
            if self._room == 0:
                self.close()
                self.names.append(f"{self._name}.{len(self.names):02d}")
                self._file, self._room = (self._folder / self.names[-1]).open("wb"), self._most
            assert self._file is not None
            taken = rest[: self._room]
            self._file.write(taken)
            self.digest.update(taken)
            self._room -= len(taken)
            rest = rest[len(taken) :]
        return len(data)

    def close(self) -> None:
        """End the last part."""
        if self._file is not None:
            self._file.close()


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


_NO_VIDEO = '''"""In place of PyAV, which MAX imports for videos."""


def __getattr__(name: str) -> object:
    raise AttributeError(f"av.{name}: videos are not part of this environment")
'''

if __name__ == "__main__":
    sys.exit(main())
