"""A fork of a process that has imported MAX is told so; it would hang."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.paths import INSTALLED

# Each is tried in a fork of a process that has loaded the embedded model; what hangs there is ended by the alarm.
_WAYS = {
    "call": "pipeline('a red star', height=64, width=64, num_inference_steps=1)",
    "encode": "pipeline.text_encoder([np.asarray([1, 2, 3])])",
    "graph": "pipeline.transformer.modulation_table(np.ones(1, np.float32))",
    "decode": "pipeline.decode_latents(upload(np.zeros((1, 16, 64), np.float32), CPU()), np.empty(4), np.empty(4))",
    "raw graph": "pipeline._pack(latents)",
    "load": "ZImagePipeline.from_pretrained(device='cpu')",
    "step cache": "pipeline.compile_step_cache(TaylorSeer())",
}
_PROGRAM = """
import os, signal
import numpy as np
from max.driver import CPU
from max_zimage import TaylorSeer, ZImagePipeline
from max_zimage.device.devices import upload

pipeline = ZImagePipeline.from_pretrained(device="cpu")
latents = upload(np.zeros((1, 16, 4, 2, 4, 2), np.float32), CPU())
for way in {ways}:
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        try:
            eval(way)
        except RuntimeError as error:
            print(way, "->", str(error).replace("\\n", " "), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
print(pipeline("a red star", height=64, width=64, num_inference_steps=1)[0].size)
"""


def test_a_fork_is_told_that_it_cannot_use_what_was_loaded() -> None:
    command = [sys.executable, "-c", _PROGRAM.format(ways=list(_WAYS.values()))]
    environment = {**os.environ, "PYTHONPATH": INSTALLED}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    *told, size = done.stdout.splitlines()
    assert size == "(64, 64)", done.stderr
    assert len(told) == len(_WAYS)
    for way, line in zip(_WAYS.values(), told, strict=True):
        assert line.startswith(f"{way} -> MAX was imported in process "), line
        assert 'start processes with multiprocessing.get_context("spawn")' in line


def test_a_fork_before_the_first_import_may_load() -> None:
    program = """
import os
import max_zimage
child = os.fork()
if child == 0:
    from max_zimage.host.processes import check_process
    check_process()
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=900)


def test_the_process_itself_may_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from max_zimage.host import processes

    processes.check_process()
    monkeypatch.setattr(processes, "_HOME", -1)
    with pytest.raises(RuntimeError, match="imported in process -1, and this is a fork of it"):
        processes.check_process()
