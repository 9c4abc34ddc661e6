"""`make wheel-check`: build the wheel, install it into an empty environment elsewhere, draw a picture with it.

Apart from the test suite because it installs everything once more, which takes minutes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.paths import ROOT

PROMPT = "a red star on a blue background"
# Where the code and the weights come from: from the wheel, not by chance from the checkout.
WHERE = "from max_zimage import graphs; import max_zimage; print(graphs.__file__, max_zimage.__file__)"
READ = (
    "import sys, pathlib; from max_zimage.request.metadata import read_parameters as read; "
    "print(read(pathlib.Path(sys.argv[1])))"
)


def main() -> int:
    """Run the check; any failing command ends it."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        # The real path: a linked temporary folder would make the comparison below fail.
        home = Path(folder).resolve()
        environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}

        def run(*command: str | Path) -> str:
            print("+", *command, flush=True)
            done = subprocess.run(
                [str(part) for part in command],
                cwd=home,
                env=environment,
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            print(done.stdout, end="", flush=True)
            return done.stdout

        run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", home / "dist", ROOT)
        (wheel,) = (home / "dist").glob("*.whl")
        run(sys.executable, "-m", "venv", home / "venv")
        programs = home / "venv" / "bin"
        pip = (programs / "python", "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt")
        run(*pip, "pip")
        run(*pip, wheel)
        places = run(programs / "python", "-c", WHERE).split()
        if not all(Path(place).is_relative_to(home / "venv") for place in places):
            raise SystemExit(f"imported from {places}, not from the wheel in {home / 'venv'}")
        run(programs / "max-zimage", "generate", PROMPT, "--seed", "1", "--output", home / "star.png")
        if PROMPT not in run(programs / "python", "-c", READ, home / "star.png"):
            raise SystemExit("the picture does not carry its prompt")
    print(f"The wheel draws a picture in an environment of its own; {time.monotonic() - started:.0f} s in all.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
