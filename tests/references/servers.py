"""A real server on the embedded model, as a process of its own: `max-zimage serve`, or another command."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.paths import INSTALLED, ROOT

_C = ctypes.CDLL(None)  # opened here: between fork and exec nothing may be locked
KEY = "correct-horse"
SLOW: dict[str, Any] = {"size": "512x512", "steps": 100}
"""A request that takes half a minute on two cores: nothing waits for its end."""
START_SECONDS = 1200  # a cold compile on two cores, of the encoder too
ANSWER_SECONDS = 900  # the first request for something compiles it, beside other tests
STOP_SECONDS = 40


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _end_with_tests() -> None:
    """On Linux have the kernel end a server whose tests were killed before they could."""
    if sys.platform == "linux":
        _C.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    # Tests may be kept to a share of the processors, see conftest.py; a server is not.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, range(os.cpu_count() or 1))


@dataclass
class Server:
    """One server.

    Attributes:
        folder: Where its log goes.
        flags: Of the command.
        key: Sent with every request; None for none.
        command: What is started, a program beside Python's and its first arguments.
        environment: Variables besides this process's own.
        torch: Whether it finds PyTorch where that is installed, which takes twice as long to start.
    """

    folder: Path
    flags: list[str] = field(default_factory=list)
    key: str | None = None
    command: tuple[str, ...] = ("max-zimage", "serve")
    environment: dict[str, str] = field(default_factory=dict)
    torch: bool = False

    def begin(self) -> None:
        """Start it without waiting for it; `__exit__` ends it."""
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = self.folder / "server.log"
        program, *arguments = self.command
        places = str(ROOT) if self.torch else INSTALLED
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [str(Path(sys.executable).with_name(program)), *arguments, "--port", str(self.port), *self.flags],
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": places, "HF_HUB_OFFLINE": "1", **self.environment},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_tests,
            )
        headers = {} if self.key is None else {"Authorization": f"Bearer {self.key}"}
        self.client = httpx.Client(base_url=self.url, headers=headers, timeout=ANSWER_SECONDS)

    def __enter__(self) -> Server:
        self.begin()
        try:
            self.wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):  # all of it is gone, as it should be
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(STOP_SECONDS)

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.returncode}:\n{self.text()[-4000:]}")
            try:
                if self.client.get("/health").status_code == 200:
                    self.health_checks = 1
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise AssertionError(f"the server was not ready in {START_SECONDS} s:\n{self.text()[-4000:]}")

    def text(self) -> str:
        """Its log."""
        return self.log.read_text()

    def post(self, path: str, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
        return self.client.post(path, json=body, headers=headers)

    def draw(
        self, prompt: str = "a red star on a blue background", headers: dict[str, str] | None = None, **body: Any
    ) -> httpx.Response:
        return self.post("/v1/images/generations", headers, prompt=prompt, **body)

    def temporary(self) -> Path:
        """Its folder for temporary files, which its worker is told."""
        told = Path(f"/proc/{self.worker()}/environ").read_bytes().split(b"\0")
        return next(Path(os.fsdecode(each[7:])) for each in told if each.startswith(b"TMPDIR="))

    def metric(self, name: str) -> float:
        """The value of a figure; the sum where it has labels that are not given."""
        lines = self.client.get("/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))

    def wait_for_status(self, request: str, status: str) -> dict[str, Any]:
        return status_of(self.client, request, status)

    def processes(self) -> list[int]:
        """Process ids of its process group: itself, the worker, and what they started."""
        listed = subprocess.run(
            ["ps", "-e", "-o", "pid=,pgid=,stat="], capture_output=True, text=True, check=True
        ).stdout
        rows = [line.split() for line in listed.splitlines()]
        return [int(pid) for pid, group, stat in rows if int(group) == self.process.pid and not stat.startswith("Z")]

    def left_behind(self) -> list[int]:
        """What is still there of it some seconds after its end; its resource tracker ends a moment later."""
        deadline = time.monotonic() + 10
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.1)
        return self.processes()

    def worker(self) -> int:
        """Process id of the worker: the child that spawned last and is not the resource tracker."""
        for pid in sorted(self.processes(), reverse=True):
            if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        raise AssertionError("there is no worker")


def status_of(client: httpx.Client, request: str, *wanted: str) -> dict[str, Any]:
    """How a request stands, once it is one of those."""
    deadline = time.monotonic() + 60
    while True:
        answer = client.get(f"/v1/requests/{request}")
        if answer.status_code == 200 and answer.json()["status"] in wanted:
            return dict(answer.json())
        assert time.monotonic() < deadline, f"request {request} stands at {answer.text}, not at {wanted}"
        time.sleep(0.02)


def left_after_some_steps(client: httpx.Client, request: str) -> httpx.Headers:
    """Have a slow picture drawn whose events come as they happen, and hang up; the headers of its answer."""
    asked = {"prompt": "x", "stream": True, "progress": True, **SLOW}
    times: list[float] = []
    with client.stream("POST", "/v1/images/generations", json=asked, headers={"X-Request-ID": request}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("data: "):
                assert json.loads(line[6:])["type"] == "image_generation.progress"
                times.append(time.monotonic())
            if len(times) == 4:
                break
    assert times[-1] - times[0] > 0.05  # not all at once: a step of this size takes a tenth of a second and more
    return answer.headers


def error_of(answer: httpx.Response) -> dict[str, Any]:
    return dict(json.loads(answer.text)["error"])
