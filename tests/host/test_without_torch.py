"""A command finds no PyTorch, nor do processes that it starts; a program that imports the package does."""

from __future__ import annotations

import os
import subprocess
import sys

from max_zimage.host.without_torch import VARIABLE
from tests.paths import ROOT

COMMAND = """
import sys
sys.argv = ["max-zimage", *{words}]
from max_zimage.cli.main import start
start()
import transformers
print(transformers.is_torch_available())
"""
STARTED = """
import max_zimage.cli.main, transformers
print(transformers.is_torch_available())
"""
AND_ON = """
try:
    start()
except SystemExit:  # of --help
    pass
"""


def said(program: str, **more: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    environment |= {"PYTHONPATH": str(ROOT), **more}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


def test_a_command_leaves_it_out() -> None:
    assert said(COMMAND.format(words=["config", "show"])) == "False"


def test_what_a_command_starts_leaves_it_out_too() -> None:
    assert said(STARTED, **{VARIABLE: "1"}) == "False"
    assert said(STARTED) == "True"


def test_verify_finds_it() -> None:
    assert said(COMMAND.format(words=["verify", "--help"]).replace("start()\n", AND_ON)) == "True"
