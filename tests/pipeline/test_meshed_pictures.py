"""Pictures on several devices, simulated by one CPU: those of one device, and what cannot be drawn so."""

from __future__ import annotations

import json
import warnings
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from max_zimage import FirstBlockCache, ZImagePipeline
from max_zimage.cli.main import main
from max_zimage.components import meshed as meshed_components
from max_zimage.components.meshed import ZImageMeshedTransformer
from max_zimage.device.memory import NotEnoughMemoryError
from max_zimage.device.mesh import simulated_mesh
from max_zimage.errors import RequestError
from max_zimage.request.request import GenerationRequest
from tests.pipeline.test_residency import CALL, RED
from tests.recording import RecordProperty
from tests.references.diffusers_runs import Pair, relative_l2
from tests.tolerances import SAMPLED_L2


def prepared(devices: int, **given: Any) -> Any:
    with simulated_mesh():
        return ZImagePipeline.prepare(devices=["cpu"] * devices, dtype="float32", **given)


@pytest.fixture(scope="module")
def meshed() -> ZImagePipeline:
    """Three devices that share tokens, whose parts are of unequal length; to begin with, of rows of equal length."""
    checked = prepared(3, split="tokens")
    return ZImagePipeline.from_prepared(replace(checked, wish=replace(checked.wish, is_padded=False)))


def latents(pipeline: ZImagePipeline, prompt: str | list[str], given: dict[str, Any]) -> Any:
    return np.asarray(pipeline(prompt, output_type="latent", **{**CALL, **given}))


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [
        {"guidance_scale": 0.0, "height": 80, "width": 112},
        {"guidance_scale": 3.0, "sampler": "heun", "width": 64},
        {"guidance_scale": 2.0, "num_images_per_prompt": 2, "height": 64, "width": 64},
        {"step_cache": "taylorseer:cache_interval=2,warmup_steps=2", "num_inference_steps": 6, "width": 64},
    ],
    ids=["unguided", "heun", "two pictures", "taylorseer"],
)
def test_pictures_are_those_of_one_device(
    given: dict[str, Any], meshed: ZImagePipeline, embedded: Pair, record_property: RecordProperty
) -> None:
    assert isinstance(meshed.transformer, ZImageMeshedTransformer)
    assert meshed.residency.plan.mesh == ("cpu",) * 3
    ours, plain = (latents(each, RED, given) for each in (meshed, embedded.ours))
    errors = [relative_l2(*pair) for pair in zip(ours, plain, strict=True)]
    record_property("relative_l2", max(errors))
    assert max(errors) <= SAMPLED_L2


@pytest.mark.slow
def test_captions_of_unequal_length_and_a_cache_of_first_blocks(meshed: ZImagePipeline, embedded: Pair) -> None:
    """Graphs of their own, compiled when they are first needed: from then on the one for any rows takes all."""
    assert isinstance(meshed.transformer, ZImageMeshedTransformer)
    prompts = [RED, "a long prompt about a blue circle that stands before a red star on a green ground " * 3]
    given = {"height": 64, "width": 64}
    for pair in zip(*(latents(each, prompts, given) for each in (meshed, embedded.ours)), strict=True):
        assert relative_l2(*pair) <= SAMPLED_L2
    assert meshed.transformer.is_padded
    assert meshed.transformer.model.name == "denoise_meshed_padded"
    cached = {**given, "num_inference_steps": 6, "step_cache": FirstBlockCache(threshold=0.2, warmup_steps=2)}
    ours, plain = (latents(each, prompts, cached) for each in (meshed, embedded.ours))
    for pair in zip(ours, plain, strict=True):
        assert relative_l2(*pair) <= SAMPLED_L2


@pytest.mark.parametrize("fails", [False, True])
def test_one_copy_of_the_weights_on_each_gpu(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph for rows of equal length gives its weights back before the other one takes them; no GPU needed."""
    events: list[str] = []
    component = ZImageMeshedTransformer.__new__(ZImageMeshedTransformer)
    before, after = (SimpleNamespace(name=name) for name in ("denoise_meshed", "denoise_meshed_padded"))

    def graph(name: str, weights: Any) -> Any:
        component._graphs.append(after)  # type: ignore[arg-type]
        return after

    def compile(made: Any) -> None:
        events.append(f"compile {made.name}")
        if fails:
            component._graphs.remove(made)
            raise RuntimeError("no")

    own: dict[str, Any] = {"device": SimpleNamespace(is_host=False), "is_padded": False, "model": before}
    own |= {"_graphs": [before], "provide": dict, "graph": graph, "compile": compile}
    own |= {"_bind": lambda weights: events.append("bind")}
    vars(component).update(own)
    monkeypatch.setattr(meshed_components, "unbind", lambda graphs: events.append(f"unbind {graphs[0].name}"))
    with pytest.raises(RuntimeError, match="no") if fails else nullcontext():
        component._take_padding()
    assert events == ["unbind denoise_meshed", "compile denoise_meshed_padded", *["bind"][: int(fails)]]
    assert (component.is_padded, component.model) == ((False, before) if fails else (True, after))
    assert component._graphs == [component.model]


@pytest.mark.parametrize(("beside", "small"), [((0, 0), None), ((1, 0), "gpu:0"), ((0, 1), "gpu:1")])
def test_another_copy_is_checked_beside_what_lies_on_each_gpu(beside: tuple[int, int], small: str | None) -> None:
    component, room = ZImageMeshedTransformer.__new__(ZImageMeshedTransformer), {"total_memory": 20}
    gpus = [SimpleNamespace(is_host=False, stats=room, label="gpu", id=number) for number in range(2)]
    own: dict[str, Any] = {"devices": gpus, "device": gpus[0], "is_here": True, "_weights": None, "_nbytes": 10}
    own |= {"nbytes_beside": beside[0], "nbytes_beside_each": beside, "provide": dict}
    own |= {"graph": lambda name, weights: name, "compile": lambda graph: None}
    vars(component).update(own)
    with pytest.raises(NotEnoughMemoryError, match=f"on {small}") if small else nullcontext():
        component._once_more("meshed_first_block_layers")
    assert component._copies == (0 if small else 1)


@pytest.mark.slow
def test_branches_on_two_devices(embedded: Pair) -> None:
    pipeline = ZImagePipeline.from_prepared(prepared(2, split="branches"))
    for guidance in (3.0, 0.0):
        given = {"guidance_scale": guidance, "height": 64, "width": 64}
        for pair in zip(*(latents(each, RED, given) for each in (pipeline, embedded.ours)), strict=True):
            assert relative_l2(*pair) <= SAMPLED_L2


def test_requests_that_one_device_alone_can_draw() -> None:
    def asked(split: str, **fields: Any) -> GenerationRequest:
        sources = prepared(2, split=split).sources
        steps = {"num_inference_steps": 8}
        return GenerationRequest.create(limits=sources.limits, defaults=sources.defaults, prompt=RED, **steps, **fields)

    with pytest.raises(RequestError, match="nag_scale cannot go with several devices, got 5"):
        asked("tokens", guidance_scale=0.0, nag_scale=5.0)
    with pytest.raises(
        RequestError, match="takes one branch at a time, and the devices share branches; set step_cache"
    ):
        asked("branches", step_cache="first_block")
    assert asked("tokens", step_cache="first_block").step_cache is not None
    with pytest.raises(RequestError, match=r'take taylorseer, or split="tokens"'):
        prepared(2, split="branches", step_cache="first_block")
    with pytest.raises(RequestError, match="quantize transformer=int8 and devices exclude each other"):
        prepared(2, quantize="transformer=int8")


def test_what_devices_share_by_default(tmp_path: Path) -> None:
    """The embedded model guides, unless a configuration says otherwise: rows of unequal length are to be expected."""
    assert (prepared(2).wish.groups, prepared(2).wish.is_padded) == (2, True)
    assert prepared(3).wish.groups == 1
    assert prepared(2, split="tokens").wish.groups == 1
    file = tmp_path / "config.toml"
    for scale, groups in (("0", 1), ("4.0", 2), ("[0, 0, 4.0]", 2)):
        file.write_text(f"[generation]\nnum_inference_steps = 3\nguidance_scale = {scale}\n")
        found = prepared(2, config=file)
        assert (found.wish.groups, found.wish.is_padded) == (groups, groups == 2)
        assert found.sources.limits.groups == groups
    # Which goes with first-block caching, as branches do not.
    file.write_text('[generation]\nguidance_scale = 0\nstep_cache = "first_block"\n')
    assert prepared(2, config=file).wish.groups == 1


def test_an_argument_comes_before_the_configuration(tmp_path: Any) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[pipeline]\ndevices = ["cpu", "cpu", "cpu"]\nsplit = "tokens"\n')
    with simulated_mesh(), warnings.catch_warnings():
        assert ZImagePipeline.prepare(config=file).wish.mesh == ("cpu",) * 3
        assert ZImagePipeline.prepare(config=file, device="cpu").wish.mesh == ()
        assert ZImagePipeline.prepare(config=file, placement="sequential").wish.mesh == ()
        assert ZImagePipeline.prepare(config=file, placement="resident").wish.mesh == ("cpu",) * 3
        file.write_text('[pipeline]\ndevice = "cpu"\nplacement = "sequential"\n')
        found = ZImagePipeline.prepare(config=file, devices=["cpu", "cpu"]).wish
        assert (found.mesh, found.placement) == (("cpu", "cpu"), "resident")


def test_what_is_configured_as_if_nothing_were_said(tmp_path: Path) -> None:
    """The defaults of the page of keys, and what a profile takes back of another one."""
    file = tmp_path / "config.toml"
    file.write_text(
        '[pipeline]\ndevice = "cpu"\ndevices = ""\nsplit = "auto"\nmax_memory = ""\n'
        '[several.pipeline]\ndevice = "auto"\ndevices = ["cpu", "cpu", "cpu"]\nsplit = "tokens"\n'
    )
    with simulated_mesh():
        assert ZImagePipeline.prepare(config=file, split="auto").wish.mesh == ()
        assert ZImagePipeline.prepare(config=file, profile="several").wish.mesh == ("cpu",) * 3
        both = '[default.pipeline]\ndevices = "cpu,cpu"\nsplit = "tokens"\n'
        file.write_text(f'{both}[one.pipeline]\ndevices = []\nsplit = "auto"\n')
        assert ZImagePipeline.prepare(config=file, profile="one").wish.mesh == ()
        assert ZImagePipeline.prepare(config=file, split="auto").wish.groups == 1  # left to the file


def test_info_judges_all_devices_together(capsys: pytest.CaptureFixture[str]) -> None:
    """By the plan: the weights and the work of one device say nothing of several."""
    facts = []
    with simulated_mesh():
        for more in ([], ["--max-memory", "1MiB"]):
            assert main(["info", "--json", "--devices", "cpu,cpu", *more]) == 0
            facts.append(json.loads(capsys.readouterr().out))
        assert main(["info", "--devices", "cpu,cpu"]) == 0
    assert "on cpu, cpu together it fits" in " ".join(capsys.readouterr().out.split())
    assert [each["memory"]["fits"] for each in facts] == [each["placement"]["fits"] for each in facts] == [True, False]
    assert facts[0]["placement"]["mesh"] == ["cpu", "cpu"]


def test_flags_are_refused_before_anything_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["generate", RED], ["serve"], ["info"]):
        assert main([*command, "--devices", "cpu,cpu"]) == 2
        assert "devices are GPUs that compute together, got cpu, cpu" in capsys.readouterr().err
        assert main([*command, "--split", "tokens"]) == 2
        assert "split says what several devices share" in capsys.readouterr().err
