"""The server: what it adds to a picture, pictures a second by the number of clients, and its memory over many requests.

Servers run one at a time, each a process of its own with its worker. Clients are threads of this process.
"""

from __future__ import annotations

import base64
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from benchmarks.measure import Row, Timing, interleave
from max_zimage import ZImagePipeline
from tests.references.servers import Server

PROMPT = "a red star on a blue background"
SIZES = "128x128, 8 steps, guidance 2, PNG"
_BODY: dict[str, Any] = {"prompt": PROMPT, "size": "128x128", "steps": 8, "guidance_scale": 2.0, "seed": 1}
_SOAK_SIZES = ("128x128", "96x128", "160x96", "256x256")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How much is asked.

    Attributes:
        clients: Numbers of clients that ask at a time.
        requests: Of each throughput.
        soak: Requests in all whose memory is watched.
    """

    clients: tuple[int, ...]
    requests: int
    soak: int


FULL = Setting(clients=(1, 4, 16), requests=64, soak=1000)
QUICK = Setting(clients=(2,), requests=4, soak=10)


def rows(setting: Setting, repeats: int) -> list[Row]:
    """Measure overhead, throughput and memory."""
    measured: list[Row] = []
    with _server([]) as server:
        measured += _overhead(server, repeats)
        measured += _max_benchmark(server, setting)
    for pictures in (1, 4):
        with _server(["--batch-pictures", str(pictures)]) as server:
            measured += [_throughput(server, clients, setting.requests, pictures) for clients in setting.clients]
    with _server([]) as server:
        measured.append(_soak(server, setting.soak))
    return measured


@contextmanager
def _server(flags: list[str]) -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder), flags) as server:
        yield server


def _overhead(server: Server, repeats: int) -> list[Row]:
    """One request over HTTP against the same picture from the pipeline in this process."""
    pipeline = ZImagePipeline.from_pretrained(device="cpu", dtype="float32")

    def execute() -> object:
        return pipeline(PROMPT, height=128, width=128, num_inference_steps=8, guidance_scale=2.0, seed=1)

    timings = interleave({"execute, in process": execute, "served": lambda: _drawn(server, **_BODY)}, 4 * repeats, 3)
    added = 1000 * (timings["served"].median - timings["execute, in process"].median)
    return [
        Row(
            case="one request",
            variant=name,
            dtype="float32",
            sizes=SIZES,
            timing=timing,
            reference=name.startswith("execute"),
            note=f"serving adds {added:.1f} ms" if name == "served" else "",
        )
        for name, timing in timings.items()
    ]


def _drawn(server: Server, **body: Any) -> bytes:
    answer = server.post("/v1/images/generations", **body)
    answer.raise_for_status()
    return base64.b64decode(answer.json()["data"][0]["b64_json"])


def _throughput(server: Server, clients: int, requests: int, pictures: int) -> Row:
    def one(seed: int) -> float:
        begin = time.perf_counter()
        _drawn(server, **_BODY | {"seed": seed})
        return time.perf_counter() - begin

    _drawn(server, **_BODY)
    begin = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        latencies = list(pool.map(one, range(requests)))
    seconds = time.perf_counter() - begin
    p50, p99 = np.percentile(latencies, [50, 99])
    return Row(
        case=f"{clients} clients",
        variant=f"up to {pictures} pictures share steps",
        dtype="float32",
        sizes=SIZES,
        timing=Timing.of([seconds / requests]),
        reference=pictures == 1,
        note=f"{requests / seconds:.2f} pictures/s; latency {p50:.2f} s median, {p99:.2f} s p99",
    )


def _max_benchmark(server: Server, setting: Setting) -> list[Row]:
    """MAX's own load generator against `/v1/responses`."""
    measured = []
    for clients in setting.clients:
        with tempfile.TemporaryDirectory() as folder:
            result = Path(folder) / "result.json"
            command = [str(Path(sys.executable).with_name("max")), "benchmark", "--host", "127.0.0.1"]
            command += ["--port", str(server.port), "--model", "tiny-zimage", "--dataset-name", "synthetic-pixel"]
            command += ["--benchmark-task", "text-to-image", "--num-prompts", str(setting.requests)]
            command += ["--max-concurrency", str(clients), "--image-width", "128", "--image-height", "128"]
            command += ["--image-steps", "8", "--image-seed", "1", "--result-filename", str(result)]
            # MAX puts a variable into this process's environment that would mislead another Python; a copy has it not.
            environment = dict(os.environ)
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
            if done.returncode or not result.exists():
                note = f"does not run: {(done.stderr.strip().splitlines() or ['no result'])[-1][:150]}"
                measured.append(
                    Row(case="max benchmark", variant=f"{clients} clients", dtype="", sizes=SIZES, note=note)
                )
                continue
            facts = json.loads(result.read_text())
        seconds, note = _benchmark_facts(facts)
        measured.append(
            Row(
                case="max benchmark",
                variant=f"{clients} clients",
                dtype="float32",
                sizes="128x128, 8 steps, the checkpoint's guidance",
                timing=None if seconds is None else Timing.of([seconds]),
                note=note,
            )
        )
    return measured


def _benchmark_facts(facts: Any) -> tuple[float | None, str]:
    """Seconds a request and what else MAX's result says."""
    flat = facts[0] if isinstance(facts, list) else facts
    rate = flat.get("request_throughput")
    kept = {name: flat[name] for name in ("completed", "failures", "mean_latency_ms", "p99_latency_ms") if name in flat}
    return (1 / rate if rate else None), ", ".join(f"{name} {value}" for name, value in kept.items())


def _soak(server: Server, requests: int) -> Row:
    """Requests of mixed sizes, a tenth of which are given up, and the resident memory of server and worker."""
    chance = random.Random(0)
    processes = [psutil.Process(pid) for pid in (server.process.pid, server.worker())]
    memory: list[float] = []

    def one(number: int) -> None:
        body = _BODY | {"size": chance.choice(_SOAK_SIZES), "steps": chance.randint(1, 4), "seed": number}
        body |= {"guidance_scale": chance.choice([0.0, 2.0]), "n": chance.randint(1, 2)}
        timeout = 0.05 if number % 10 == 9 else 300.0
        with suppress(httpx.ReadTimeout):
            server.client.post("/v1/images/generations", json=body, timeout=timeout).raise_for_status()

    begin = time.perf_counter()
    with ThreadPoolExecutor(4) as pool:
        for start in range(0, requests, 10):
            list(pool.map(one, range(start, min(start + 10, requests))))
            memory.append(sum(process.memory_info().rss for process in processes) / 2**20)
    seconds = time.perf_counter() - begin
    warm = memory[len(memory) // 3 :]
    slope = float(np.polyfit(np.arange(len(warm)) * 10, warm, 1)[0]) if len(warm) > 1 else 0.0
    return Row(
        case="soak",
        variant=f"{requests} requests, mixed sizes, a tenth hung up",
        dtype="float32",
        sizes="96x128 to 256x256",
        timing=Timing.of([seconds / requests]),
        peak_mib=max(memory),
        note=f"resident memory after a third of them: {warm[0]:.0f} to {warm[-1]:.0f} MiB, {1000 * slope:.1f} MiB a "
        f"thousand requests; {server.metric('zimage_cancellations_total'):.0f} cancelled",
    )
