"""What a fleet on Ray Serve is made of, without Ray's processes: shapes, ranks, figures, the gateway, flags."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import numpy as np
import pytest

from max_zimage.cli import fleet as fleet_command
from max_zimage.cli.errors import BadInput
from max_zimage.cli.main import main
from max_zimage.request.prompt_features import PromptFeatures
from max_zimage.serving.metrics import Metrics
from max_zimage.serving.ray_serve.call import NOT_SERVING, Call
from max_zimage.serving.ray_serve.figures import merged
from max_zimage.serving.ray_serve.shapes import ranked, shape_of, turned
from tests.references.diffusers_runs import Pair

ray_exceptions = pytest.importorskip("ray.exceptions")
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError  # noqa: E402

from max_zimage.serving.ray_serve.door import Door  # noqa: E402
from max_zimage.serving.ray_serve.encoding import Encoding  # noqa: E402
from max_zimage.serving.ray_serve.gateway import Gateway  # noqa: E402


def body(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def test_what_requests_share_is_their_shape() -> None:
    plain = shape_of(body(prompt="a", size="128x128", steps=8, seed=1))
    assert plain == shape_of(body(seed=2, steps=8, prompt="b", n=3, user="x", size="128x128", stream=True))
    others = [
        body(prompt="a", size="128x144", steps=8),
        body(prompt="a", size="128x128", steps=9),
        body(prompt="a", size="128x128", steps=8, guidance_scale=3.0),
        body(prompt="a", size="128x128", steps=8, sampler="heun"),
        body(prompt="a", size="128x128", steps=8, loras=[{"name": "x", "scale": 1.0}]),
        body(model="m", input="a", provider_options={"image": {"width": 128, "height": 128, "steps": 8}}),
    ]
    assert len({plain, *map(shape_of, others)}) == 7
    assert {shape_of(each) for each in (b"", b"{", b"[1]", b"[" * 100_000, b"--boundary")} == {""}


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


class Handle:
    """A deployment's handle whose replicas answer as they are told, one after another.

    Args:
        answers: Messages of each replica that is asked, or what it raises.
    """

    def __init__(self, *answers: Any) -> None:
        self.answers, self.calls, self.cancelled = list(answers), [], 0
        self.answer = self

    def options(self, **_: Any) -> Handle:
        return self

    def remote(self, call: Call) -> Handle:
        self.calls.append(call)
        self._said = self._say(self.answers.pop(0))
        return self

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._said

    def __anext__(self) -> Any:
        return self._said.__anext__()

    def cancel(self) -> None:
        self.cancelled += 1

    async def _say(self, answer: Any) -> AsyncIterator[Any]:
        for message in answer:
            if isinstance(message, Exception):
                raise message
            if callable(message):
                await message()
            else:
                yield message


def ok(content: bytes = b"{}", kind: bytes = b"application/json") -> list[Any]:
    headers = [(b"content-type", kind), (b"x-request-id", b"twice")]
    start = {"type": "http.response.start", "status": 200, "headers": headers}
    return [start, {"type": "http.response.body", "body": content, "more_body": False}]


DEAD = ray_exceptions.ActorDiedError()
SILENT = [{"type": NOT_SERVING}]


def ask(handle: Handle, method: str = "POST", path: str = "/v1/images/generations", **given: Any) -> httpx.Response:
    """What a client is told by a gateway, without its pauses."""
    key, limit = given.pop("key", None), given.pop("limit", 1000)
    encoding = given.pop("encoding", None)

    async def asked() -> httpx.Response:
        gateway: Any = Gateway(handle, Door(key, limit), encoding, 60.0)  # type: ignore[arg-type]
        transport = httpx.ASGITransport(gateway)
        async with httpx.AsyncClient(transport=transport, base_url="http://fleet") as client:
            return await client.request(method, path, **given)

    return asyncio.run(asked())


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("max_zimage.serving.ray_serve.gateway._PAUSE", 0.0)


def code(answer: httpx.Response) -> tuple[int, str, bool]:
    return answer.status_code, answer.json()["error"]["code"], "retry-after" in answer.headers


def test_an_answer_is_passed_on_and_named_once() -> None:
    handle = Handle(ok(b'{"data": []}'))
    answer = ask(handle, json={"prompt": "a", "steps": 3}, headers={"X-Request-ID": "mine"})
    assert (answer.status_code, answer.json()) == (200, {"data": []})
    assert "x-request-id" not in answer.headers  # Ray's proxy adds it
    (call,) = handle.calls
    assert (call.shape, call.body) == (shape_of(call.body), b'{"prompt":"a","steps":3}')
    assert dict(call.scope["headers"])[b"x-request-id"] == b"mine"


@pytest.mark.parametrize(
    ("answers", "fields", "told"),
    [
        ([[DEAD], ok()], {"seed": 3}, 200),
        ([[DEAD]], {}, (502, "replica_died", False)),
        ([[DEAD], [DEAD], [DEAD]], {"seed": 3}, (502, "replica_died", False)),
        ([SILENT, ok()], {}, 200),
        ([SILENT, SILENT, SILENT], {}, (503, "no_replica", True)),
        ([[BackPressureError(num_queued_requests=1, max_queued_requests=1)]], {"seed": 3}, (503, "fleet_full", True)),
        ([[DeploymentUnavailableError("pictures")]], {}, (503, "no_replica", True)),
    ],
)
def test_replicas_that_do_not_answer(answers: list[Any], fields: dict[str, Any], told: Any) -> None:
    handle = Handle(*answers)
    answer = ask(handle, json={"prompt": "a", **fields}, headers={"X-Request-ID": "mine"})
    assert (answer.status_code if told == 200 else code(answer)) == told
    assert handle.answers == []
    names = [dict(call.scope["headers"])[b"x-request-id"] for call in handle.calls]
    assert names[0] == b"mine"
    assert len({*names}) == len(names)  # another replica would take the same id for the lost request


def test_what_breaks_in_the_middle_is_not_asked_again() -> None:
    start, event = ok(b"event: x\n\n", b"text/event-stream")
    answer = ask(Handle([start, event | {"more_body": True}, DEAD]), json={"prompt": "a", "seed": 3})
    first, last = answer.text.split("\n\n")[:2]
    assert first == "event: x"
    assert last.startswith("event: error\ndata: ")
    assert json.loads(last.partition("data: ")[2])["error"]["code"] == "replica_died"
    start, part = ok(b"half")
    with pytest.raises(Exception, match="replica that had this request died"):  # the connection breaks off
        ask(Handle([start, part | {"more_body": True}, DEAD]), json={"prompt": "a", "seed": 3})


def test_who_hangs_up_cancels_the_call() -> None:
    handle = Handle([asyncio.Event().wait])

    async def hung_up() -> None:
        received = iter([{"type": "http.request", "body": b"{}", "more_body": False}])

        async def receive() -> Any:
            try:
                return next(received)
            except StopIteration:
                await asyncio.sleep(0.05)
                return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            raise AssertionError(message)

        scope = {"type": "http", "method": "POST", "path": "/v1/images/generations", "headers": []}
        async with asyncio.timeout(10):
            await Gateway(handle, Door(None, 1000), None, 60.0)(scope, receive, send)  # type: ignore[arg-type]

    asyncio.run(hung_up())
    assert handle.cancelled == 1


def test_the_door_is_before_the_replicas() -> None:
    handle = Handle()
    assert code(ask(handle, json={"prompt": "a"}, key="secret")) == (401, "invalid_api_key", False)
    assert code(ask(handle, content=b"x" * 1001)) == (413, "body_too_large", False)

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x" * 400

    assert code(ask(handle, content=pieces())) == (413, "body_too_large", False)
    assert ask(handle, "GET", "/livez").json() == {"status": "alive"}
    assert handle.calls == []
    assert ask(Handle(SILENT), "GET", "/readyz").status_code == 503
    right = {"Authorization": "Bearer secret"}
    assert ask(Handle(ok()), json={"prompt": "a"}, key="secret", headers=right).status_code == 200
    assert ask(Handle(ok()), "OPTIONS", key="secret").status_code == 200


class Encoders:
    """A handle of encoders."""

    def __init__(self, answer: Callable[[dict[str, Any]], Any]) -> None:
        self._answer, self.asked = answer, []
        self.encode = self

    async def remote(self, asked: dict[str, Any]) -> Any:
        self.asked.append(asked)
        answer = self._answer(asked)
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_prompts_are_encoded_before_they_are_drawn() -> None:
    encoders = Encoders(lambda asked: {"features": "AAAA"})
    given = {"prompt": "a", "template": "x", "size": "128x128", "seed": 2}
    handle = Handle(ok(), ok(), ok())
    for fields in (given, {**given, "features": "BBBB"}, {**given, "enhance": True}):
        ask(handle, json=fields, encoding=Encoding(encoders))  # type: ignore[arg-type]
    assert encoders.asked == [{"prompt": "a", "negative_prompt": "", "template": "x"}]
    sent = [json.loads(call.body) for call in handle.calls]
    assert sent == [
        {"size": "128x128", "seed": 2, "features": "AAAA"},
        {**given, "features": "BBBB"},
        {**given, "enhance": True},
    ]
    assert dict(handle.calls[0].scope["headers"])[b"content-length"] == str(len(handle.calls[0].body)).encode()
    dead = Handle(ok())
    ask(dead, json=given, encoding=Encoding(Encoders(lambda asked: DEAD)))  # type: ignore[arg-type]
    assert json.loads(dead.calls[0].body) == given
    told = {"error": {"status": 400, "code": "invalid_value", "message": "too long", "param": "prompt"}}
    answer = ask(Handle(), json=given, encoding=Encoding(Encoders(lambda asked: told)))  # type: ignore[arg-type]
    assert code(answer) == (400, "invalid_value", False)


def test_an_encoder_makes_the_features_of_the_pipeline(embedded: Pair) -> None:
    from max_zimage.serving.ray_serve.encoder import EncoderReplica

    replica = EncoderReplica(
        lambda: fleet_command.encoder_by(("serve", "--device", "cpu", "--max-prompt-characters", "40"))
    )
    answer = asyncio.run(replica.encode({"prompt": "a red star", "negative_prompt": ""}))
    made = PromptFeatures.from_bytes(base64.b64decode(answer["features"]))
    wanted = embedded.ours.encode("a red star", negative_prompt="")
    np.testing.assert_array_equal(made.positive, wanted.positive)
    np.testing.assert_array_equal(made.negative, wanted.negative)
    for asked, blamed in (({"prompt": "x" * 41}, "prompt"), ({"prompt": "a", "hidden_layer": 99}, "hidden_layer")):
        error = asyncio.run(replica.encode(asked))["error"]
        assert (error["status"], error["param"]) == (400, blamed)


STORE = ("--state-store", "file:///nowhere/state")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--replicas", "2"), "--replicas would do nothing without --ray"),
        (("--encoders", "1"), "--encoders would do nothing without --ray"),
        (("--ray", "local", "--replicas", "2"), "several replicas need a store"),
        (
            ("--ray", "local", "--replicas", "2", "--max-replicas", "1", *STORE),
            "--max-replicas 1 is below --replicas 2",
        ),
        (("--ray", "local", "--device", "cpu", "--replica-gpus", "1"), "--replica-gpus 1 would be idle"),
        (("--ray", "local", "--replica-cpus", "-1"), "must be 0 or more, got -1"),
        (("/nowhere", "--ray", "local"), "/nowhere"),
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
