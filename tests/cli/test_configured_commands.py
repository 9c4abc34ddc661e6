"""What of a configuration commands take, and what flags and pictures come before it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from max_zimage import ZImagePipeline
from max_zimage.cli import info_placements, profile_suite
from max_zimage.cli import profile as profile_command
from max_zimage.cli.configuring import configure
from max_zimage.cli.encoder_only import as_encode
from max_zimage.cli.errors import BadInput
from max_zimage.cli.fleet import fleet_of
from max_zimage.cli.given import command_of, given_by
from max_zimage.cli.main import _parser
from max_zimage.cli.placement_flags import wanted_places
from max_zimage.cli.server_settings import settings_of
from max_zimage.errors import RequestError
from max_zimage.pipeline import encoder as encoder_module
from max_zimage.pipeline.configured import with_options
from max_zimage.pipeline.loading import CheckedModel
from max_zimage.request.metadata import read_parameters
from tests.cli.test_config import SMALL, Run, settings
from tests.cli.test_config import config as config
from tests.cli.test_config import loaded as loaded
from tests.cli.test_config import run as run


def test_a_picture_of_another_tool_leaves_the_model_to_the_configuration(
    run: Run, config: Path, loaded: list[CheckedModel], tmp_path: Path
) -> None:
    """Its text names no model, dtype or size of weights; what it does say comes before the file."""
    chunks = PngInfo()
    chunks.add_text("parameters", "a red star\nSteps: 3, CFG scale: 1, Seed: 7, Size: 64x64, Version: v1.10.1")
    Image.new("RGB", (64, 64)).save(tmp_path / "theirs.png", pnginfo=chunks)
    config.write_text(f'{SMALL}sampler = "heun"\n[encoder]\nquantization = "8bit"')
    flags = ("--config", str(config), "--from", "theirs.png")
    assert run("generate", "--quiet", *flags, "--output", "a.png")[0] == 0
    assert [each.sources.quantize for each in loaded] == ["text_encoder=int8"]
    drawn = read_parameters(Path("a.png"))
    assert (drawn.num_inference_steps, drawn.seed, drawn.width, drawn.sampler) == (3, 7, 64, "heun")
    code, out, error = run("config", "show", "--json", "generate", *flags)
    shown = settings(out)
    assert (code, error) == (0, "")
    assert shown["generation", "seed"]["origin"] == "picture theirs.png"
    assert shown["generation", "sampler"]["origin"].endswith("[generation] sampler")
    assert shown["", "quantize"]["origin"].endswith("[encoder] quantization")


def configured(config: Path, text: str, *words: str) -> Any:
    """The arguments of a command over a file of this text."""
    config.write_text(text)
    line = [*words, "--config", str(config)]
    arguments = _parser().parse_args(line)
    configure(arguments, given_by(_parser(), line), command_of(_parser(), "serve"))
    return arguments


OFFLOAD = '[encoder]\ncpu_offload = true\ndevice = "cpu"\n[pipeline]\nmax_memory = "8GiB"\n'


def test_placement_and_offload_are_one_setting(config: Path) -> None:
    """A flag, or an argument, of either comes before the file's other."""
    wanted = {"--placement resident": ("resident", False), "--placement auto": ("auto", False)}
    for flags, held in (wanted | {"--cpu-offload": (None, True)}).items():
        found = configured(config, OFFLOAD, "generate", "x", *flags.split())
        assert (found.placement, found.cpu_offload) == held
        assert not {"placement", "cpu_offload"} & found.configuration.start.keys()
        assert found.max_memory == "8GiB"
    found = configured(config, '[pipeline]\nplacement = "resident"', "generate", "x", "--cpu-offload")
    assert (found.placement, found.cpu_offload) == (None, True)
    with_file = configured(config, OFFLOAD, "generate", "x").configuration
    for argument, left in ({"placement": "resident"}, "resident"), ({"placement": "auto"}, "auto"):
        options = with_options(None, {"cpu_offload": False, **argument}, with_file)[1]
        assert options["placement"] == left
        assert options.get("cpu_offload") is (left == "auto")  # which is where an argument says nothing


def test_a_placement_that_several_devices_have_leaves_them_there(config: Path) -> None:
    text = '[pipeline]\ndevices = "gpu:0,1"\nsplit = "tokens"'
    for placement in ("resident", "auto"):
        found = configured(config, text, "generate", "x", "--placement", placement)
        assert (found.devices, found.split, found.placement) == ("gpu:0,1", "tokens", placement)
    for flags in (("--placement", "streamed"), ("--device", "gpu:1"), ("--cpu-offload",)):
        found = configured(config, text, "generate", "x", *flags)
        assert (found.devices, found.split) == (None, None)


def test_a_replica_has_the_gpus_that_it_names(config: Path) -> None:
    """Ray shows it no others, and numbers them anew."""
    text = '[pipeline]\ndevices = ["gpu:0", "gpu:1", "gpu:2"]'

    def gpus(text: str, *words: str) -> float | None:
        arguments = configured(config, text, "serve", "--ray", "local", *words)
        found = fleet_of(arguments, settings_of(arguments))
        assert found is not None
        return found.gpus

    assert [gpus("", *words) for words in ((), ("--device", "gpu"), ("--device", "cpu"))] == [None, 1.0, 0.0]
    assert [gpus("", "--devices", names) for names in ("gpu:0,1", "gpu:0,gpu:1", "gpu,1")] == [2.0] * 3
    assert (gpus(text), gpus(text, "--device", "gpu")) == (3.0, 1.0)
    assert gpus("", "--devices", "gpu:2,3", "--replica-gpus", "4") == 4.0
    with pytest.raises(BadInput, match=r"--devices gpu:0,1 names more than the 1 that Ray .* --replica-gpus 2$"):
        gpus("", "--devices", "gpu:0,1", "--replica-gpus", "1")
    with pytest.raises(BadInput, match=r"than the 2 .* give --replica-gpus 4, or number the devices from 0$"):
        gpus("", "--devices", "gpu:2,3")
    with pytest.raises(BadInput, match="devices must be a text such as"):
        gpus("[pipeline]\ndevices = [0, 1]")


def test_offload_of_a_file_is_no_mistake_on_a_machine_without_a_gpu(
    config: Path, run: Run, loaded: list[CheckedModel]
) -> None:
    """llm-dit's files have it; the flag stays one."""
    config.write_text(SMALL + "[pipeline]\nenable_model_cpu_offload = true")
    prepared = ZImagePipeline.prepare(config=config, device="cpu")
    assert (prepared.wish.placement, prepared.wish.asks) == ("auto", False)
    (note,) = prepared.wish.notes
    assert note == "cpu_offload is configured and has no effect here, where all components run on the CPU"
    draw = ("generate", "a red star", "--quiet", "--device", "cpu", "--config", str(config), "--output")
    assert run(*draw, "a.png")[0] == 0
    assert [each.wish for each in loaded] == [prepared.wish]
    code, _, error = run(*draw, "b.png", "--cpu-offload")
    assert (code, "all run on the CPU here" in error) == (2, True)


EVERYTHING = (
    'templates_dir = "templates"\nquantize = "text_encoder=int8"\nweight_path = "vae/a.safetensors"\n'
    '[encoder]\ndevice = "cpu"\n[pipeline]\ndevice = "cpu"\ntorch_dtype = "float32"\nplacement = "sequential"\n'
    'max_memory = "8GiB"\n[pytorch]\nembedding_cache = "1MiB"\n'
)


def test_values_of_a_file_are_not_refused_as_flags(config: Path) -> None:
    """Under flags by which a command does something else, what has no meaning then is left out."""
    memory = configured(config, EVERYTHING, "info", "--memory", "16GiB")
    info_placements._check(memory)
    assert (memory.dtype, memory.placement, memory.device, memory.weight_path) == ("float32", "sequential", "auto", [])
    for flags in (("--attention",), ("--component", "vae")):
        found = configured(config, EVERYTHING, "profile", *flags)
        profile_command.check_flags(found)
        assert (found.dtype, found.device, wanted_places(found)) == ("float32", "cpu", False)
    sweep = configured(config, EVERYTHING, "profile", "--sweep", "baseline")
    assert (sweep.dtype, sweep.quantize, sweep.embedding_cache) == (None, None, 0)
    assert (sweep.placement, sweep.max_memory) == ("sequential", "8GiB")
    alone = configured(config, EVERYTHING, "generate", "x", "--encoder-only", "--save-embeddings", "a.safetensors")
    assert as_encode(alone).encoder_device == "cpu"
    with pytest.raises(BadInput, match="--placement, --cpu-offload: --encoder-only loads the text encoder alone"):
        as_encode(
            configured(config, "", "generate", "x", "--encoder-only", "--save-embeddings", "a.safetensors",
                       "--placement", "auto", "--cpu-offload")
        )  # fmt: skip
    with pytest.raises(ValueError, match="where components run has no meaning with --attention"):
        profile_command.check_flags(configured(config, "", "profile", "--attention", "--placement", "auto"))
    shown = configured(config, EVERYTHING, "profile", "--show-info")
    profile_command.check_flags(shown)
    assert (shown.quantize, shown.placement, shown.max_memory) == ("text_encoder=int8", "sequential", "8GiB")


def test_a_sweep_hands_on_where_components_run(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handed: list[list[str]] = []
    monkeypatch.setattr(profile_suite, "checked_picture", lambda arguments: None)

    def child(common: list[str], flags: object) -> dict[str, Any]:
        handed.append(list(common))
        return {"tests": []}

    monkeypatch.setattr(profile_suite, "_child", child)
    flags = ("--encoder-device", "cpu", "--cpu-offload", "--profile", "default")
    profile_suite.sweep(configured(config, '[pipeline]\nmax_memory = "8GiB"', "profile", "--sweep", "float32", *flags))
    assert len(handed) == 2
    wanted = {"--encoder-device=cpu", "--cpu-offload", "--max-memory=8GiB", f"--config={config}", "--profile=default"}
    assert wanted <= {*handed[0]}
    assert handed[0] == handed[1]


def test_templates_of_a_file_reach_commands_without_their_flag(config: Path, tmp_path: Path) -> None:
    (tmp_path / "templates").mkdir()
    text = f'templates_dir = "{tmp_path / "templates"}"'
    assert configured(config, text, "info").templates_dir == str(tmp_path / "templates")
    assert configured(config, text, "profile").configuration.start == {"templates_dir": str(tmp_path / "templates")}


def test_where_a_text_encoder_alone_runs(config: Path) -> None:
    """A flag, the device of the encoder, the device of the model, in this order."""
    text = '[encoder]\ndevice = "gpu:7"\n[pipeline]\ndevice = "gpu:6"'
    found = configured(config, text, "encode", "x", "--output", "a.safetensors", "--device", "cpu")
    assert (found.device, found.encoder_device) == ("cpu", None)
    found = configured(config, text, "encode", "x", "--output", "a.safetensors")
    assert (found.device, found.encoder_device) == ("gpu:6", "gpu:7")
    with pytest.raises(RequestError, match="gpu:7"):
        encoder_module.ZImageTextEncoder.prepare(config=config)
    assert encoder_module.ZImageTextEncoder.prepare(config=config, device="cpu").devices[0].is_host
    with pytest.raises(SystemExit):
        _parser().parse_args(["encode", "x", "--output", "a.safetensors", "--placement", "auto"])
