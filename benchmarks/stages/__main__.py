"""Run one stage: `python -m benchmarks.stages STAGE --work DIR --out DIR [--small]`.

What a stage computes stays in --work, so that one that ran out of time goes on where it stopped when it is called
again; --out gets STAGE.csv and STAGE.log. The stages after `install` import what it has installed.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OTEL_SDK_DISABLED", "true")

from benchmarks.stages.unpack import install

STAGES = {
    "install": "unpack an environment, and run the tests that need a GPU",
    "embedded": "the embedded model: ours and diffusers in turn",
    "model": "write the full-size random checkpoint and compile its graphs",
    "pictures": "prompt to picture, and where the time goes",
    "peers": "diffusers on the same weights and noise, eager and compiled",
    "caches": "step caches against computing every step",
}
SITE = "site"
"""Folder in --work that holds the installed packages."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a stage; 0 if every row could be measured, 1 if one failed."""
    options = _parse(arguments)
    work, out = options.work.absolute(), options.out.absolute()
    try:
        seconds = _unpack(options.source, work / SITE) if options.stage == "install" and options.source else None
    except Exception as error:  # a damaged archive or a full disk, in whatever way they show
        out.mkdir(parents=True, exist_ok=True)
        with (out / "install.log").open("a", encoding="utf-8") as log:
            print(f"install: {options.source}: {error!r}", file=log)
        print(f"install: {error or repr(error)}", file=sys.stderr)
        return 1
    _use_site(work / SITE)
    if not options.small:  # a small model's graphs are those of the tests, which the user's own folders hold
        os.environ.setdefault("MAX_ZIMAGE_CACHE", str(work / "graphs"))
        os.environ.setdefault("MODULAR_CACHE_DIR", str(work / "max"))
    # Imported here, and the stage's own imports even later: they need what `install` has unpacked.
    from benchmarks.stages.stage import Stage

    stage = Stage(options.stage, work=work, out=out, minutes=options.minutes, small=options.small)
    if options.stage == "install":
        from benchmarks.stages.install import run

        run(stage, options.source, seconds)
    else:
        importlib.import_module(f"benchmarks.stages.{options.stage}").run(stage)
    return stage.finish()


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stages", description=__doc__)
    parser.add_argument("stage", choices=STAGES, help="; ".join(f"{name}: {what}" for name, what in STAGES.items()))
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="what is kept between stages")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the CSV file and the log go")
    parser.add_argument("--small", action="store_true", help="small sizes on the CPU: does it run?")
    parser.add_argument("--minutes", type=float, default=9.5, metavar="M", help="of the stage at most (default 9.5)")
    parser.add_argument("--from", dest="source", type=Path, metavar="PATH", help="install: wheels or an archive")
    options = parser.parse_args(arguments)
    if options.minutes <= 0:
        parser.error(f"--minutes must be more than 0, got {options.minutes:g}")
    if options.source is not None and not options.source.exists():
        parser.error(f"--from: there is nothing at {options.source}; name a folder of wheels or an archive")
    return options


def _unpack(source: Path, site: Path) -> float | None:
    """Install the packages; the seconds that it took, None where an earlier run has done it."""
    if site.is_dir():
        print(f"{site} is there from an earlier run; delete it to unpack {source} again", flush=True)
        return None
    print(f"unpacking {source} to {site}", flush=True)
    begin = time.monotonic()
    install(source, site)
    return time.monotonic() - begin


def _use_site(site: Path) -> None:
    """Prefer what `install` has unpacked, also in the programs that a stage starts."""
    if site.is_dir():
        sys.path.insert(0, str(site))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))


if __name__ == "__main__":
    raise SystemExit(main())
