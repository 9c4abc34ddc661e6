"""What people write about where components run: every bad setting is refused before a file is read."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from max.driver import CPU, Buffer, Device

from max_zimage import ZImagePipeline
from max_zimage.cli import generate as cli_generate
from max_zimage.cli.main import main
from max_zimage.compile.ahead_of_time import FULL_MODEL
from max_zimage.device import devices
from max_zimage.device.placement import place
from max_zimage.device.plans import HOST, SIGNALS, STAGES, Plan, Streams, Wish
from max_zimage.errors import RequestError
from max_zimage.pipeline import load_components, loading, placing, stages
from max_zimage.pipeline.placing import Size, needs_of
from max_zimage.pipeline.storages import VARIABLE as QUANTIZE
from max_zimage.pipeline.storages import storages_of
from max_zimage.pipeline.wishes import Placing
from max_zimage.pipeline.worker_plan import VARIABLE, plan_for_worker
from tests.references.diffusers_runs import Pair

CARD = "gpu:0"


@pytest.fixture
def no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks for a checkpoint fails."""

    def found(*_: Any, **__: Any) -> Any:
        raise AssertionError("a file was looked for")

    monkeypatch.setattr(loading, "resolve_model", found)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"encoder_device": "tpu"}, 'encoder_device must be "auto", "cpu", "gpu" or "gpu:N", got \'tpu\'; here there'),
        ({"dit_device": "gpu:7"}, "dit_device 'gpu:7' was asked for, and no accelerator is available here; here there"),
        ({"vae_device": ""}, "vae_device must be"),
        ({"placement": "fast"}, "placement must be auto, resident, sequential, streamed, got 'fast'"),
        ({"max_memory": "8G"}, "max_memory must be a size such as 512MiB, 1GiB or 268435456, got '8G'"),
        ({"max_memory": 0}, "max_memory must be above 0, got 0"),
        ({"max_memory": 1.5}, "max_memory must be a number of bytes or a size such as 8GiB, got 1.5"),
        ({"max_memory": True}, "max_memory must be a number of bytes"),
        ({"cpu_offload": True}, 'all run on the CPU here; leave it out, or take placement="sequential"'),
        ({"cpu_offload": True, "placement": "resident"}, "exclude each other; leave one out"),
        ({"cpu_offload": True, "placement": "streamed"}, 'placement="streamed" exclude each other; leave one out'),
    ],
)
@pytest.mark.usefixtures("no_files")
def test_a_bad_setting_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        ZImagePipeline.prepare("no/such/model", **given)
    assert message in str(caught.value)


@pytest.mark.usefixtures("no_files")
def test_everything_that_is_wrong_is_said_together() -> None:
    given = {"device": "cpu", "encoder_device": "x", "dit_device": "y", "vae_device": "gpu:9", "placement": "z"}
    with pytest.raises(RequestError) as caught:
        ZImagePipeline.prepare("no/such/model", **given, max_memory="much")
    lines = str(caught.value).splitlines()
    assert lines[0] == "the request has 5 problems:"
    assert [line.split()[1] for line in lines[1:]] == [
        "encoder_device",
        "dit_device",
        "vae_device",
        "placement",
        "max_memory",
    ]


def test_names_of_devices_and_what_the_user_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "accelerator_count", lambda: 2)
    wish = Placing(encoder_device="cpu", vae_device="gpu:1", max_memory="8GiB").read()
    assert wish.devices == {"text_encoder": "cpu", "transformer": "gpu:0", "vae": "gpu:1"}
    assert (wish.named, wish.max_memory, wish.asks) == (frozenset({"text_encoder", "vae"}), 2**33, True)
    assert not Placing().read().asks
    assert Placing(cpu_offload=True).read().placement == "sequential"
    with pytest.raises(RequestError, match=r"'gpu:7' was asked for, and only 2 accelerators are .* cpu, gpu:0, gpu:1"):
        Placing(dit_device="gpu:7").read()


def test_storages_go_by_where_components_run() -> None:
    gpu = cast(Device, SimpleNamespace(is_host=False, label="gpu"))
    places = {"text_encoder": CPU(), "transformer": gpu}
    found = storages_of("text_encoder=int8,transformer=int8", places)
    assert found == {"text_encoder": "int8", "transformer": "int8_rows"}
    assert storages_of("text_encoder=q4", places) == {"text_encoder": "q4"}
    message = r"quantize q4 is for a CPU, got device gpu for transformer=q4; use transformer=int8, .* or dit_device cpu"
    with pytest.raises(ValueError, match=message):
        storages_of("text_encoder=q4,transformer=q4", places)
    # In words it is what was asked for, so that another process reads the same.
    sources = ZImagePipeline.prepare(device="cpu").sources
    quantized = sources.with_storages(found)
    assert quantized.quantize == "text_encoder=int8,transformer=int8"
    with pytest.raises(RequestError, match="text_encoder=int8,transformer=int8 and devices exclude each other"):
        quantized.with_mesh(2)


def test_needs_of_the_published_model_are_those_of_the_reference() -> None:
    """Section 4.1's table, in GB: step with and without guidance, decode, the text encoder at 512 tokens."""
    dtypes: Any = dict.fromkeys(STAGES, "bfloat16")
    rows = {512: (0.12, 0.23, 0.40), 768: (0.24, 0.49, 0.91), 1024: (0.42, 0.84, 1.61), 2048: (1.65, 3.30, 6.44)}
    for side, (step, guided, decode) in rows.items():
        for branches, expected in ((1, step), (2, guided)):
            size = Size(height=side, width=side, branches=branches)
            streams = Streams(count=30, block=0, around=0)
            needs = placing.needs_by_shape(FULL_MODEL, dtypes, dict.fromkeys(STAGES, 0), size, False, streams)
            assert needs["transformer"].work / 1e9 == pytest.approx(expected, abs=0.006)
            assert needs["vae"].work / 1e9 == pytest.approx(decode, abs=0.006)
            assert needs["text_encoder"].work / 1e9 == pytest.approx(0.035 * branches, abs=0.001)


def test_info_lists_cards_without_a_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--memory", "24GiB", "16GiB", "12GiB", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    found = [(each["fits"], each.get("residency")) for each in facts["placements"]]
    assert found == [(True, "resident"), (True, "sequential"), (True, "streamed")]
    assert facts["placements"][1]["peaks"]["gpu:0"] / 1e9 == pytest.approx(14.1, abs=0.1)
    assert facts["placements"][2]["stay"] == 22
    assert facts["derived"]
    storages = {each["name"]: each["bytes"] for each in facts["storages"]}
    assert storages["fp8"]["transformer"] / 1e9 == pytest.approx(6.29, abs=0.006)
    for flags, message in (
        (["--memory", "16"], None),
        (["--memory", "much", "more"], "--memory must be a size such as 512MiB, 1GiB or 268435456, got 'more'"),
        (["--memory", "--encoder-device", "cpu", "--device", "cpu"], "--encoder-device, --device has no meaning with"),
        (["--memory", "--height", "1000"], "height must be a multiple of 16 and at least 16, got 1000"),
        (["--memory", "--quantize", "vae=int8"], "quantize takes COMPONENT=STORAGE with a component of"),
        (["--memory", "--placement", "x"], "placement must be auto, resident, sequential, streamed, got 'x'"),
    ):
        assert main(["info", *flags]) == (0 if message is None else 2)
        assert message is None or message in capsys.readouterr().err


def test_info_and_generate_say_what_is_chosen(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["info", "--json", "--device", "cpu", "--placement", "sequential"]) == 0
    assert json.loads(capsys.readouterr().out)["placement"]["residency"] == "sequential"
    assert main(["generate", "x", "--cpu-offload"]) == 2
    assert "cpu_offload has components wait in the CPU's memory" in capsys.readouterr().err

    def loaded(prepared: Any) -> Any:
        raise ValueError(f"would load {prepared.plan.residency}")

    monkeypatch.setattr(cli_generate, "_load", loaded)
    assert main(["generate", "x", "--placement", "sequential", "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert (
        "max-zimage: placement: text encoder and transformer take turns: text encoder, transformer and vae on" in said
    )
    assert "would load sequential" in said
    assert main(["generate", "x", "--max-memory", "1MiB", "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert re.search(r"the model does not fit \(placement auto\): cpu has 1 MiB for them, 4\d MiB are needed", said)
    assert 'max_memory="' in said
    assert main(["generate", "x", "--placement", "streamed", "--device", "cpu", "--step-cache", "first_block"]) == 2
    assert "and streamed blocks do not go together" in capsys.readouterr().err


def test_what_a_server_has_chosen_reaches_its_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(devices=dict.fromkeys(STAGES, HOST), residency="sequential", decodes_alone=True, peaks={HOST: 5})
    assert plan_for_worker([CPU()]) == Plan(devices=dict.fromkeys(STAGES, HOST))
    monkeypatch.setenv(VARIABLE, plan.to_json())
    assert plan_for_worker([CPU()]) == plan


def test_a_server_chooses_for_its_largest_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served: list[Plan] = []
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.setenv(QUANTIZE, "")

    def run(opened: Any) -> int:
        served.append(opened.prepared.plan)
        return 0

    monkeypatch.setattr("max_zimage.serving.server.run", run)
    flags = ["serve", "--port", "0", "--device", "cpu", "--max-pixels", "262144", "--max-images", "1"]
    assert main([*flags, "--placement", "sequential"]) == 0
    assert served[0].residency == "sequential"
    assert plan_for_worker([CPU()]) == served[0]
    assert main(flags) == 0
    assert plan_for_worker([CPU()]).is_plain
    needs = needs_of(ZImagePipeline.prepare(device="cpu").sources, Size(height=512, width=512, branches=3))
    alone = needs["vae"].weights + needs["vae"].work
    assert main([*flags, "--placement", "sequential", "--max-memory", f"{alone}"]) == 0
    assert served[-1].decodes_alone
    assert main([*flags, "--placement", "sequential", "--max-memory", f"{alone - 1}"]) == 2
    assert "--max-pixels 65536 would fit" in capsys.readouterr().err


class StandIn:
    """What a component is told."""

    def __init__(self, config: Any, dtype: str, places: list[Any], *_: Any, session: Any, is_away: bool, **__: Any):
        self.device, self.dtype, self.session, self.is_away, self.nbytes_beside = places[0], dtype, session, is_away, 0


@pytest.mark.parametrize("residency", ["resident", "sequential"])
def test_each_component_is_loaded_for_its_device(
    residency: Any, embedded: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device each, a session for each device, and what lies beside them there."""
    monkeypatch.setattr(load_components, "InferenceSession", lambda devices: ("session", *devices))
    where = cast(Any, {"text_encoder": "a cpu", "transformer": "a card", "vae": "a card"})
    plan = Plan(devices={"text_encoder": HOST, "transformer": CARD, "vae": CARD}, residency=residency)
    make, nbytes = cast(Any, dict.fromkeys(STAGES, StandIn)), embedded.ours.sources.nbytes
    made: Any = load_components.load_components(make, embedded.ours.sources, plan, where, cast(Any, "main"), None)
    assert {name: each.session for name, each in made.items()} == {
        "text_encoder": ("session", "a cpu"),
        "transformer": "main",
        "vae": "main",
    }
    assert {name: each.device for name, each in made.items()} == where
    assert {(each.dtype, each.is_away) for each in made.values()} == {("float32", residency == "sequential")}
    assert [each.nbytes_beside for each in made.values()] == [0, nbytes["vae"], nbytes["transformer"]]


def test_a_mesh_is_told_what_lies_beside_it_on_each_device(embedded: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    class Meshed(StandIn):
        nbytes_beside_each: tuple[int, ...]

    monkeypatch.setattr(load_components, "ZImageMeshedTransformer", Meshed)
    monkeypatch.setattr(load_components, "InferenceSession", lambda devices: devices)
    monkeypatch.setattr(load_components, "device_of", str)
    monkeypatch.setattr(load_components, "check_mesh", lambda *_: None)
    where = cast(Any, {"text_encoder": "gpu:1", "transformer": CARD, "vae": CARD})
    plan = Plan(devices=where, mesh=(CARD, "gpu:1", "gpu:2"))
    make, nbytes = cast(Any, dict.fromkeys(STAGES, StandIn)), embedded.ours.sources.nbytes
    made: Any = load_components.load_components(make, embedded.ours.sources, plan, where, cast(Any, "main"), None)
    text, transformer, vae = (nbytes[name] for name in STAGES)
    assert made["transformer"].nbytes_beside_each == (vae + SIGNALS, text + SIGNALS, SIGNALS)
    beside = [made[name].nbytes_beside for name in STAGES]
    assert beside == [transformer + SIGNALS, vae + SIGNALS, transformer + SIGNALS]


def test_features_and_latents_move_to_where_they_are_used(embedded: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every move of a picture: from the text encoder to the transformer, and from there to the autoencoder."""
    ours, noted = embedded.ours, []

    def moved(buffer: Buffer, device: Device) -> Buffer:
        noted.append((tuple(map(int, buffer.shape)), device))
        return devices.moved(buffer, device)

    monkeypatch.setattr(stages, "moved", moved)
    call: dict[str, Any] = {"num_inference_steps": 1, "height": 64, "width": 64, "guidance_scale": 0.0, "seed": 1}
    ours("x", output_type="np", **call)
    (features, to_transformer), (latents, to_vae) = noted
    assert features[-1] == ours.text_encoder.spec.hidden_size
    assert latents == (1, 16, 64)
    assert (to_transformer, to_vae) == (ours.transformer.device, ours.vae.device)


def test_a_buffer_stays_where_it_is_and_is_copied_to_elsewhere() -> None:
    here = Buffer.from_numpy(np.arange(3, dtype=np.float32))
    assert devices.moved(here, CPU()) is here
    elsewhere = cast(Any, SimpleNamespace(device="gpu:0", to=lambda device: ("copied to", device)))
    assert cast(Any, devices.moved(elsewhere, CPU())) == ("copied to", CPU())


def test_a_wish_for_what_is_not_loaded(embedded: Pair) -> None:
    """Without a text encoder there is none to take turns with."""
    needs = needs_of(embedded.ours.sources, Size(height=64, width=64, branches=1))
    del needs["text_encoder"]
    most = {HOST: sum(each.weights for each in needs.values()) + max(each.work for each in needs.values())}
    plan = place(needs, most, Wish(devices=dict.fromkeys(STAGES, HOST)))
    assert plan.why.startswith("all stay in memory: transformer and vae on cpu")
