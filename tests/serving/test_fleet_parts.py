"""What a fleet on Ray Serve is made of, without Ray's processes: shapes, ranks, figures, encoders, flags."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from max_zimage import embedded
from max_zimage.checkpoint.locate import find_component_files
from max_zimage.cli import fleet as fleet_command
from max_zimage.cli.errors import BadInput
from max_zimage.cli.fleet_words import encoder_by
from max_zimage.cli.main import main
from max_zimage.pipeline.encoding import request_of_texts
from max_zimage.request.prompt_features import PromptFeatures
from max_zimage.serving.metrics import Metrics
from max_zimage.serving.ray_serve.call import NOT_SERVING, Call
from max_zimage.serving.ray_serve.figures import merged
from max_zimage.serving.ray_serve.shapes import ranked, read, shape_of, turned
from tests.references.diffusers_runs import Pair

pytest.importorskip("ray")


def body(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def shape(content: bytes) -> str:
    return shape_of(read(content))


def test_what_requests_share_is_their_shape() -> None:
    plain = shape(body(prompt="a", size="128x128", steps=8, seed=1))
    assert plain == shape(body(seed=2, steps=8, prompt="b", n=3, user="x", size="128x128", stream=True))
    others = [
        body(prompt="a", size="128x144", steps=8),
        body(prompt="a", size="128x128", steps=9),
        body(prompt="a", size="128x128", steps=8, guidance_scale=3.0),
        body(prompt="a", size="128x128", steps=8, sampler="heun"),
        body(prompt="a", size="128x128", steps=8, loras=[{"name": "x", "scale": 1.0}]),
        body(model="m", input="a", provider_options={"image": {"width": 128, "height": 128, "steps": 8}}),
    ]
    assert len({plain, *map(shape, others)}) == 7
    assert {shape(each) for each in (b"", b"{", b"[1]", b"[" * 100_000, b"--boundary")} == {""}


def test_a_shape_goes_to_its_replica_unless_another_is_idle() -> None:
    names = [f"replica-{number}" for number in range(8)]
    idle = dict.fromkeys(names, 0)
    homes = {shape: ranked(shape, idle, 1, 9)[0] for shape in map(str, range(200))}
    counts = [sum(home == name for home in homes.values()) for name in names]
    assert min(counts) > 8  # of 25 on average
    assert max(counts) < 50
    for shape, home in homes.items():
        assert ranked(shape, idle | {home: 1}, 1, 9)[0] != home
        busy = dict.fromkeys(names, 3)
        assert ranked(shape, busy, 0, 9)[0] == ranked(shape, busy | {home: 4}, 1, 9)[0] == home
        assert ranked(shape, busy | {home: 5}, 1, 9)[0] != home
        assert ranked(shape, busy | {home: 4}, 0, 9)[0] != home
        without = {name: 0 for name in names if name != home}  # one dies: only its shapes move
        moved = [other for other in homes if homes[other] != home and ranked(other, without, 1, 9)[0] != homes[other]]
        assert moved == []
        full = dict.fromkeys(names, 8) | {home: 9}
        assert ranked(shape, full, 1, 9)[0] != home
        assert ranked(shape, full, 1, 10)[0] == home
    assert ranked("", {"a": 2, "b": 0, "c": 1}, 1, 9) == ["b", "c", "a"]
    told = {"full": 9, "silent": None, "busy": 5, "less": 3}
    for shape in ("", *homes):  # who has not told is asked before those that are full, and after all others
        assert ranked(shape, told, 1, 9) == ["less", "busy", "silent", "full"]
    assert turned(["a", "b", "c"]) == [["a"], ["b", "c"]]
    assert turned(["a"]) == [["a"]]


def test_figures_of_all_replicas_stand_on_one_page() -> None:
    pages = {}
    for name, drawn in (("one", 2), ("two", 5)):
        metrics = Metrics()
        metrics.images.inc(drawn)
        metrics.waited.observe(0.3)
        metrics.describe({"model_name": 'a "model"'})
        pages[name] = metrics.text().decode()
    text = merged(pages).decode()
    assert 'zimage_images_total{replica="one"} 2.0' in text
    assert 'zimage_images_total{replica="two"} 5.0' in text
    assert text.count("# TYPE zimage_images_total counter") == 1
    assert text.count('zimage_queue_seconds_bucket{le="+Inf",replica=') == 2
    assert 'zimage_info{model_name="a \\"model\\"",replica="one"} 1.0' in text


STORE = ("--state-store", "file:///nowhere/state")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--replicas", "2"), "--replicas would do nothing without --ray"),
        (("--encoders", "1"), "--encoders would do nothing without --ray"),
        (("--ray", "local", "--replicas", "2"), "several replicas need a store"),
        (("--ray", "local", "--replicas", "2", "--max-replicas", "1", *STORE), "--max-replicas 1 is below"),
        (("--max-encoders", "2"), "--max-encoders would do nothing without --ray"),
        (("--ray", "local", "--encoders", "3", "--max-encoders", "2"), "--max-encoders 2 is below --encoders 3"),
        (("--ray", "local", "--device", "cpu", "--replica-gpus", "1"), "--replica-gpus 1 would be idle"),
        (("--ray", "local", "--replica-cpus", "-1"), "must be 0 or more, got -1"),
        (("/nowhere", "--ray", "local"), "/nowhere"),
        (("--ray", "local", "--read-timeout", "9"), "--read-timeout would do nothing: connections are those of Ray's"),
        (("--ray", "auto", "--write-timeout", "9"), "--write-timeout would do nothing"),
    ],
)
def test_flags_that_do_not_go_together(
    flags: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("max_zimage.serving.ray_serve.run.run", lambda *_: pytest.fail("it started"))
    try:
        assert main(["serve", "--port", "0", *flags]) == 2
    except SystemExit as error:
        assert error.code == 2
    assert told in capsys.readouterr().err


def test_without_ray_it_is_said_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["serve", "--ray", "local", "--port", "0"]) == 2
    assert "pip install 'max-zimage[ray]'" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [{"flags": "--replicas 2"}, {"flag": []}, {"flags": [2]}])
def test_a_file_for_ray_that_says_something_else(arguments: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="args: has one key, flags"):
        fleet_command.app(arguments)


def test_a_file_for_ray_has_its_own_port() -> None:
    with pytest.raises(BadInput, match=r"--port would do nothing: .* http_options in the file"):
        fleet_command.app({"flags": ["--port=8001"]})


def test_a_ray_serve_that_runs_keeps_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    from max_zimage.serving.ray_serve import run

    there = SimpleNamespace(http_config=SimpleNamespace(host="0.0.0.0", port=8000))
    monkeypatch.setattr(run, "_get_global_client", lambda **_: there)
    run.check_address("0.0.0.0", 8000)
    with pytest.raises(run.OtherAddressError, match=r"--host 0.0.0.0 --port 9000: .* 0.0.0.0, port 8000; give those"):
        run.check_address("0.0.0.0", 9000)
    monkeypatch.setattr(run, "_get_global_client", lambda **_: None)
    run.check_address("0.0.0.0", 9000)


def test_an_encoder_makes_the_features_of_the_pipeline(embedded: Pair) -> None:
    from max_zimage.serving.ray_serve.encoder import EncoderReplica

    replica = EncoderReplica(lambda: encoder_by(("serve", "--device", "cpu", "--max-prompt-characters", "40")), 0)
    answer = asyncio.run(replica.encode({"prompt": "a red star", "negative_prompt": ""}))
    made = PromptFeatures.from_bytes(base64.b64decode(answer["features"]))
    wanted = embedded.ours.encode("a red star", negative_prompt="")
    np.testing.assert_array_equal(made.positive, wanted.positive)
    np.testing.assert_array_equal(made.negative, wanted.negative)
    for asked, blamed in (({"prompt": "x" * 41}, "prompt"), ({"prompt": "a", "hidden_layer": 99}, "hidden_layer")):
        error = asyncio.run(replica.encode(asked))["error"]
        assert (error["status"], error["param"]) == (400, blamed)


def test_an_encoder_reads_texts_as_it_is_configured(tmp_path: Path) -> None:
    """Found and checked, with nothing loaded; weights of another component are not the encoder's."""
    file = tmp_path / "config.toml"
    file.write_text('[default.generation]\nhidden_layer = -3\nsystem_prompt = "be brief"\n', encoding="utf-8")
    (own,) = find_component_files(embedded.PATH, "text_encoder")
    others = find_component_files(embedded.PATH, "vae")
    weights = [word for path in (own, *others) for word in ("--weight-path", str(path))]
    checked, _ = encoder_by(("serve", "--device", "cpu", "--config", str(file), *weights))
    asked = request_of_texts(checked, "a star", "")
    assert (asked.hidden_layer, asked.system_prompt) == (((-3, 1.0),), "be brief")
    assert request_of_texts(checked, "a star", "", hidden_layer=-2).hidden_layer == ((-2, 1.0),)
    assert list(checked.plan.files) == [own]


def test_an_encoder_has_one_prompt_at_a_time_whoever_hangs_up() -> None:
    from max_zimage.serving.ray_serve.encoder import EncoderReplica

    replica: Any = EncoderReplica.__new__(EncoderReplica)
    replica._turns = ThreadPoolExecutor(1)
    begun, go, seen = threading.Event(), threading.Event(), list[tuple[str, str]]()

    def encoded(asked: dict[str, Any]) -> str:
        seen.append(("begins", asked["prompt"]))
        begun.set()
        go.wait(10)
        seen.append(("ends", asked["prompt"]))
        return str(asked["prompt"])

    async def asked() -> None:
        first = asyncio.create_task(replica.encode({"prompt": "a"}))
        await asyncio.to_thread(begun.wait, 10)
        first.cancel()
        second = asyncio.create_task(replica.encode({"prompt": "b"}))
        await asyncio.sleep(0.05)
        go.set()
        assert await second == {"features": "b"}

    replica._encoded = encoded
    asyncio.run(asked())
    assert seen == [("begins", "a"), ("ends", "a"), ("begins", "b"), ("ends", "b")]


def test_the_router_passes_over_replicas_that_do_not_serve() -> None:
    from ray.exceptions import RayActorError

    from max_zimage.serving.ray_serve.router import READY, ShapeRouter

    class Candidate:
        def __init__(self, name: str, has: int | None = 0, **said: bool) -> None:
            self.replica_id, self.routing_stats, self.has = SimpleNamespace(unique_id=name), said, has

        async def get_queue_len(self, *, deadline_s: float) -> int:
            asked_for.append(self.replica_id.unique_id)
            if self.has is None:
                await asyncio.sleep(60)
            elif self.has < 0:
                raise RayActorError
            return self.has or 0

    asked_for: list[str] = []
    heard = {"a": 2, "b": 5}

    router: Any = ShapeRouter.__new__(ShapeRouter)
    router.initialize_state(slack=1, room=9)
    router._replica_queue_len_cache = SimpleNamespace(
        get=lambda replica: heard.get(replica.unique_id),
        update=lambda replica, count: heard.update({replica.unique_id: count}),
    )
    asked = SimpleNamespace(args=[Call({}, b"", "")], routing_context=SimpleNamespace(should_backoff=False))

    def chosen(*candidates: Any) -> list[list[str]]:
        ranks = asyncio.run(router.choose_replicas(list(candidates), asked))
        return [[each.replica_id.unique_id for each in rank] for rank in ranks]

    a, b, c, ends = Candidate("a"), Candidate("b", **{READY: True}), Candidate("c"), Candidate("d", **{READY: False})
    assert chosen(a, b, c, ends) == [["c"], ["a", "b"]]  # nothing is known of c, which has just come and says so
    assert chosen(a, b, c, ends) == [["c"], ["a", "b"]]
    assert chosen(b, ends) == [["b"]]
    assert asked_for == ["c"]  # of whom something is known, or who does not serve, is not asked
    assert chosen(ends) == [["d"]]  # it may serve again
    # A replica that draws one picture for long is not heard of either, and is not idle.
    assert chosen(a, Candidate("long", has=3)) == [["a"], ["long"]]
    assert chosen(b, Candidate("hangs", has=None), Candidate("dead", has=-1)) == [["b"], ["dead", "hangs"]]
    assert "hangs" not in heard
    assert asked.routing_context.should_backoff
    idle = [Candidate(str(number)) for number in range(5)]
    asked.args[0] = Call({}, b"", "shape")
    wanted = ranked("shape", dict.fromkeys("01234", 0), 1, 9)
    assert chosen(*idle) == [wanted[:1], wanted[1:]]


def test_a_replica_whose_worker_is_gone_says_so_and_does_nothing() -> None:
    from max_zimage.serving.ray_serve.replica import Replica
    from max_zimage.serving.ray_serve.router import READY

    closed: list[bool] = []
    dispatcher = SimpleNamespace(is_closing=False, close=lambda running: closed.append(running))
    running = SimpleNamespace(is_ready=True, failure=None, state=SimpleNamespace(dispatcher=dispatcher))
    replica: Any = Replica(lambda: pytest.fail("nothing is opened"))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": message["body"][::-1]})

    async def told(method: str) -> list[Any]:
        return [message async for message in replica.answer(Call({"method": method}, b"abc"))]

    replica._app = app
    assert replica.record_routing_stats() == {READY: False}  # it has not started
    replica._running = running
    assert replica.record_routing_stats() == {READY: True}
    replica.check_health()
    assert asyncio.run(told("POST"))[1]["body"] == b"cba"
    running.is_ready = False  # the worker is being started again
    assert replica.record_routing_stats() == {READY: False}
    assert asyncio.run(told("POST")) == [{"type": NOT_SERVING}]
    replica.check_health()
    running.is_ready, running.failure = True, RuntimeError("the worker died")
    assert replica.record_routing_stats() == {READY: False}
    with pytest.raises(RuntimeError, match="cannot go on: the worker died"):
        replica.check_health()
    assert closed == [True]
    assert asyncio.run(told("POST")) == [{"type": NOT_SERVING}]
    assert asyncio.run(told("GET"))[1]["body"] == b"cba"
