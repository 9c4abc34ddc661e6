"""Prompts that a gateway has encoded before it sends them on, by encoders that are made up."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

ray_exceptions = pytest.importorskip("ray.exceptions")
from ray.serve.exceptions import BackPressureError  # noqa: E402

from max_zimage.serving.ray_serve import deployment  # noqa: E402
from max_zimage.serving.ray_serve.encoding import Encoding  # noqa: E402
from max_zimage.serving.ray_serve.settings import FleetSettings  # noqa: E402
from max_zimage.serving.settings import ServerSettings  # noqa: E402
from tests.serving.test_fleet_gateway import DEAD, Handle, ask, code, ok  # noqa: E402
from tests.serving.test_fleet_gateway import _no_pause as _no_pause  # noqa: E402


@pytest.mark.parametrize(("gpus", "of_encoder"), [(2.0, 1.0), (0.5, 0.5), (0.0, 0.0)])
def test_an_encoder_has_one_gpu_at_most(gpus: float, of_encoder: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where replicas have several, which compute pictures together."""
    given: list[Any] = []
    encoders = deployment._encoders

    def noted(fleet: FleetSettings, device: Any) -> Any:
        given.append(device["num_gpus"])
        return encoders(fleet, device)

    monkeypatch.setattr(deployment, "_encoders", noted)
    monkeypatch.setattr("ray.cluster_resources", dict)
    fleet = FleetSettings(address="auto", encoders=1, gpus=gpus)
    deployment.application(ServerSettings(name="x"), fleet, print, print, {})
    assert given == [of_encoder]


@pytest.mark.parametrize("most", [1, 3])
def test_encoders_and_replicas_scale_apart(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, dict[str, Any]] = {}

    class Noted:
        """A deployment, of which is kept how many replicas it was to have."""

        def __init__(self, replica: type) -> None:
            self.options(name=replica.__name__)

        def options(self, **given: Any) -> Noted:
            told[given["name"]] = given
            return self

        def bind(self, *_: object) -> None: ...

    monkeypatch.setattr(deployment, "_deployment", Noted)
    monkeypatch.setattr("ray.cluster_resources", dict)
    fleet = FleetSettings(address="auto", replicas=2, max_replicas=2 * most, encoders=1, max_encoders=most)
    deployment.application(ServerSettings(name="x", batch_pictures=4), fleet, print, print, {})
    pictures, encoders = told[deployment.PICTURES], told[deployment.ENCODERS]
    if most == 1:
        assert (pictures["num_replicas"], encoders["num_replicas"]) == (2, 1)
        return
    found = [each["autoscaling_config"] for each in (pictures, encoders)]
    assert [(each.min_replicas, each.max_replicas, each.target_ongoing_requests) for each in found] == [
        (2, 6, 8),
        (1, 3, 2),
    ]
    assert encoders["max_queued_requests"] == 3 * deployment._PROMPTS
    assert fleet.most == 9


class Encoders:
    """A handle of encoders."""

    def __init__(self, answer: Callable[[dict[str, Any]], Any]) -> None:
        self.asked: list[dict[str, Any]] = []
        self._answer = answer
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
    handle = Handle(ok(), ok(), ok(), ok())
    unguided = {**given, "negative_prompt": "b"}
    for fields in (given, {**given, "features": "BBBB"}, {**given, "enhance": True}, unguided):
        ask(handle, json=fields, encoding=Encoding(encoders, {}))  # type: ignore[arg-type]
    assert encoders.asked == [{"prompt": "a", "negative_prompt": "", "template": "x"}]
    sent = [json.loads(call.body) for call in handle.calls]
    assert sent == [
        {"size": "128x128", "seed": 2, "features": "AAAA"},
        {**given, "features": "BBBB"},
        {**given, "enhance": True},
        unguided,  # the replica says whether guidance is on, and the negative prompt of use
    ]
    assert dict(handle.calls[0].scope["headers"])[b"content-length"] == str(len(handle.calls[0].body)).encode()
    broken = ray_exceptions.RayTaskError("encode", "out of memory", RuntimeError("out of memory"))
    for error in (DEAD, broken, BackPressureError(num_queued_requests=1, max_queued_requests=1)):
        handle = Handle(ok())
        ask(handle, json=given, encoding=Encoding(Encoders(lambda asked, error=error: error), {}))  # type: ignore
        assert json.loads(handle.calls[0].body) == given
    told = {"error": {"status": 400, "code": "invalid_value", "message": "too long", "param": "prompt"}}
    answer = ask(Handle(), json=given, encoding=Encoding(Encoders(lambda asked: told), {}))  # type: ignore[arg-type]
    assert code(answer) == (400, "invalid_value", False)


def test_features_take_no_body_over_its_limit_and_no_seed_from_it() -> None:
    encoders = Encoding(Encoders(lambda asked: {"features": "A" * 5 * 2**20}), {})  # type: ignore[arg-type]
    given = {"prompt": "a", "seed": 2}
    small = Handle(ok())
    assert ask(small, json=given, encoding=encoders).status_code == 200
    assert json.loads(small.calls[0].body) == given
    assert dict(small.calls[0].scope["headers"])[b"content-length"] == str(len(small.calls[0].body)).encode()
    large = Handle([DEAD], ok())
    assert ask(large, json=given, encoding=encoders, limit=6 * 2**20).status_code == 200
    assert ["features" in json.loads(call.body) for call in large.calls] == [True, True]


@pytest.mark.parametrize(
    ("configured", "fields", "negative"),
    [
        ({"negative_prompt": "dull", "guidance_scale": 3.0}, {}, "dull"),
        ({"negative_prompt": "dull"}, {"guidance_scale": 3.0}, "dull"),
        ({"negative_prompt": "dull"}, {"guidance_scale": 3.0, "negative_prompt": ""}, ""),
        ({"negative_prompt": "dull"}, {}, None),
        ({"negative_prompt": "dull", "guidance_scale": 3.0}, {"guidance_scale": 0}, None),
        ({"enhance": True}, {}, None),
        ({"enhance": True}, {"enhance": False}, ""),
        ({"seed_variance": 0.3}, {}, None),
        ({"loras": ("x",)}, {}, None),
        ({"loras": ("x",)}, {"loras": []}, None),
        ({}, {"loras": [{"name": "x", "scale": 1.0}]}, None),  # it may change the text encoder
    ],
)
def test_what_is_configured_decides_what_is_encoded(
    configured: dict[str, Any], fields: dict[str, Any], negative: str | None
) -> None:
    encoders, handle, given = Encoders(lambda asked: {"features": "AAAA"}), Handle(ok()), {"prompt": "a", **fields}
    ask(handle, json=given, encoding=Encoding(encoders, configured))  # type: ignore[arg-type]
    sent = json.loads(handle.calls[0].body)
    if negative is None:
        assert (encoders.asked, sent) == ([], given)
    else:
        assert encoders.asked == [{"prompt": "a", "negative_prompt": negative}]
        assert sent == {name: value for name, value in fields.items() if name != "negative_prompt"} | {
            "features": "AAAA"
        }
