"""The configuration on the command line: what comes before what, what `config` prints, and llm-dit's flags."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.docs import config_page
from max_zimage import PromptFeatures, ZImagePipeline
from max_zimage.cli.configuring import configure
from max_zimage.cli.fleet import fleet_of
from max_zimage.cli.given import command_of, given_by
from max_zimage.cli.main import _parser, main
from max_zimage.cli.other_flags import OTHERS
from max_zimage.cli.server_keys import server_keys
from max_zimage.cli.server_settings import settings_of
from max_zimage.pipeline import encoder as encoder_module
from max_zimage.pipeline.loading import CheckedModel
from max_zimage.request.metadata import read_parameters
from max_zimage.serving.ray_serve.settings import FleetSettings
from max_zimage.serving.settings import ServerSettings
from tests.references.diffusers_runs import Pair

Run = Callable[..., tuple[int, str, str]]
SMALL = "[generation]\nheight = 64\nwidth = 96\nnum_inference_steps = 2\nseed = 3\n"


@pytest.fixture
def loaded() -> list[CheckedModel]:
    return []


@pytest.fixture
def run(
    tmp_path: Path,
    loaded: list[CheckedModel],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    embedded: Pair,
) -> Run:
    """The command line in an empty folder, drawing with the pipeline that tests share: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def from_prepared(prepared: CheckedModel) -> ZImagePipeline:
        loaded.append(prepared)
        return embedded.ours

    monkeypatch.setattr(ZImagePipeline, "from_prepared", from_prepared)

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            code = main(arguments)
        except SystemExit as exit:
            code = int(exit.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "mine.toml"
    file.write_text(SMALL)
    return file


def steps_of(name: str) -> int:
    return read_parameters(Path(name)).num_inference_steps


def pixels(name: str) -> np.ndarray:
    with Image.open(name) as picture:
        return np.asarray(picture)


def test_what_comes_before_what(run: Run, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = ("generate", "a red star", "--quiet", "--config", str(config), "--output")
    assert run(*draw, "file.png")[0] == 0
    plain = ("--steps", "2", "--height", "64", "--width", "96", "--seed", "3")
    assert run("generate", "a red star", "--quiet", *plain, "--output", "flags.png")[0] == 0
    assert pixels("file.png").shape == (64, 96, 3)
    assert np.array_equal(pixels("file.png"), pixels("flags.png"))

    monkeypatch.setenv("MAX_ZIMAGE_GENERATION_NUM_INFERENCE_STEPS", "3")
    assert run(*draw, "environment.png")[0] == 0
    assert run(*draw, "repeated.png", "--from", "file.png")[0] == 0
    assert run(*draw, "flag.png", "--from", "file.png", "--steps", "4")[0] == 0
    found = [steps_of(f"{name}.png") for name in ("file", "environment", "repeated", "flag")]
    assert found == [2, 3, 2, 4]
    assert np.array_equal(pixels("repeated.png"), pixels("file.png"))
    shown = settings(run("config", "show", "--json", "--config", str(config), "generate", "--from", "file.png")[1])
    assert (shown["generation", "seed"]["value"], shown["generation", "seed"]["origin"]) == (3, "picture file.png")
    assert not np.array_equal(pixels("environment.png"), pixels("file.png"))


def test_what_a_model_starts_with(run: Run, config: Path, loaded: list[CheckedModel]) -> None:
    config.write_text(f'{SMALL}step_cache = "taylorseer"\n[encoder]\nquantization = "8bit"\n[pipeline]\ndevice = "cpu"')
    draw = ("generate", "a red star", "--quiet", "--config", str(config), "--output")
    assert run(*draw, "a.png")[0] == 0
    assert run(*draw, "b.png", "--quantize", "transformer=q4")[0] == 0
    assert run(*draw, "c.png", "--quantization", "none", "--embedding-cache")[0] == 0
    assert [each.sources.quantize for each in loaded] == ["text_encoder=int8", "transformer=q4", ""]
    assert [each.embedding_cache_bytes for each in loaded] == [None, None, 256 * 2**20]  # None: as placed
    assert {type(each.sources.defaults.step_cache).__name__ for each in loaded} == {"TaylorSeer"}


def settings(printed: str) -> dict[tuple[str, str], dict[str, Any]]:
    return {(each["section"], each["key"]): each for each in json.loads(printed)["settings"]}


def test_show_says_where_each_value_comes_from(run: Run, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text(f"{SMALL}[server]\nport = 8001\n[big.generation]\nheight = 128\n")
    monkeypatch.setenv("MAX_ZIMAGE_SCHEDULER_SHIFT", "2.5")
    code, out, _ = run("config", "show", "--json", "--config", str(config), "--profile", "big", "serve", "--port", "1")
    found = settings(out)
    assert code == 0
    assert found["generation", "height"] == {
        "section": "generation", "key": "height", "value": 128, "origin": f"{config} line 9: [generation] height"
    }  # fmt: skip
    assert (found["generation", "width"]["value"], found["generation", "sampler"]["origin"]) == (96, "default")
    assert found["generation", "shift"]["value"] == 2.5
    assert found["generation", "shift"]["origin"] == "MAX_ZIMAGE_SCHEDULER_SHIFT"
    assert (found["server", "port"]["value"], found["server", "port"]["origin"]) == (1, "flag --port")
    text = run("config", "show", "--config", str(config))[1]
    assert f"configuration file: {config}\nprofile: default\n" in text
    assert f"port                     8001                         {config} line 7: [server] port\n" in text
    code, _, error = run("config", "show", "--config", str(config), "--profile", "biggest")
    assert (code, error) == (2, f"max-zimage: error: {config} has no profile 'biggest'; it has default, big\n")


def test_a_wrong_file_is_told_before_anything_is_loaded(run: Run, config: Path, loaded: list[CheckedModel]) -> None:
    config.write_text("[generation]\nheight_px = 64\n[slg]\nscale = -1\nenabled = true")
    code, _, error = run("generate", "x", "--config", str(config))
    assert (code, loaded) == (2, [])
    assert error.startswith("max-zimage: error: 2 things are wrong:\n- ")
    assert "[generation] has no key height_px; the nearest is height" in error


@pytest.mark.parametrize(("flag", "fate", "said"), OTHERS, ids=[flag.lstrip("-") for flag, _, _ in OTHERS])
def test_flags_of_llm_dit_are_answered(flag: str, fate: str, said: str, run: Run) -> None:
    words = flag.split() if flag.startswith("serve") else ["generate", "x", *flag.split()]
    words += {"--dype-base-shift": ["0.6"], "--dype-max-shift": ["1"]}.get(flag, [])
    code, _, error = run("config", "show", *words)
    if fate == "a line":
        assert (code, error) == (0, f"max-zimage: {said}\n")
    else:
        name = "--encoder-only" if flag.startswith("serve") else flag.split()[0]
        assert code == 2
        assert error.startswith(f"max-zimage: error: {name}")
        assert error.endswith(f": {said}\n")


ALIASES = [
    ("--negative-prompt blue", "--negative blue"),
    ("--guidance-scale 2", "--guidance 2"),
    ("--embeddings-file a", "--embeddings a"),
    ("--load-embeddings a", "--embeddings a"),
    ("--dype --dype-method yarn", "--dype yarn"),
    ("--img2img a.png", "--image a.png"),
    ("--torch-dtype bfloat16", "--dtype bfloat16"),
    ("--model-path m", "--model m"),
    ("--verbose", "--debug"),
    ("-v", "--debug"),
    ("--tiled-vae", "--tiled-vae blend"),
    ("--force-think-block --thinking-content a", "--thinking-content a"),
    ("--model-type zimage", ""),
]


@pytest.mark.parametrize(("theirs", "ours"), ALIASES, ids=[theirs for theirs, _ in ALIASES])
def test_llm_dits_names_of_flags(theirs: str, ours: str) -> None:
    found = [vars(_parser().parse_args(["generate", "x", *words.split()])) for words in (theirs, ours)]
    for each in found:
        each.pop("other_model_type")
        each.pop("other_force_think_block")
    assert found[0] == found[1]


def served(*words: str) -> ServerSettings:
    return settings_of(serving(*words))


def serving(*words: str) -> argparse.Namespace:
    line = ["serve", *words]
    arguments = _parser().parse_args(line)
    configure(arguments, given_by(_parser(), line), command_of(_parser(), "serve"))
    return arguments


def fleet(*words: str) -> tuple[ServerSettings, FleetSettings | None]:
    arguments = serving(*words)
    settings = settings_of(arguments)
    return settings, fleet_of(arguments, settings)


VALUES: dict[str, Any] = {"api_key_file": "key", "lora_folder": ".", "allow_host": ["example.org"]}
VALUES |= {"cors_origin": ["https://example.org"], "served_model_name": "star", "host": "::1"}
VALUES |= {"trusted_proxy": ["10.0.0.0/8"], "state_store": "file:///shared/state", "ray": "local"}
OF_A_FLEET = ("replicas", "max_replicas", "encoders", "max_encoders", "replica_cpus", "replica_gpus")


@pytest.mark.parametrize("name", server_keys(command_of(_parser(), "serve")))
def test_every_key_of_the_server_changes_its_settings(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "key").write_text("secret")
    key = server_keys(command_of(_parser(), "serve"))[name]
    value = VALUES.get(name, True if key.types == (bool,) else 7)
    file = tmp_path / "config.toml"
    file.write_text(f"[server]\n{name} = {json.dumps(value)}")
    beside = ("--ray", "local", "--state-store", "file:///shared/state") if name in OF_A_FLEET else ()
    configured, plain = fleet(*beside, "--config", str(file)), fleet(*beside)
    assert configured != plain
    flag = "--" + name.replace("_", "-")
    words = [flag] if key.types == (bool,) else [flag, *(value if isinstance(value, list) else [str(value)])]
    assert configured == fleet(*beside, *words)


def test_the_start_of_a_server(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('model_path = "a/b"\n[generation]\nstep_cache = "taylorseer"\n[pytorch]\nembedding_cache = "1MiB"')
    found = served("--config", str(file))
    assert (found.model, found.name, found.step_cache, found.embedding_cache_bytes) == ("a/b", "b", "taylorseer", 2**20)
    assert served("c/d", "--config", str(file)).model == served("--model-path", "c/d").model == "c/d"
    assert served("--model", "c/d").model == "c/d"
    assert served("--cache-size", "4").embedding_cache_bytes == 4 * 512 * 2560 * 2


def test_features_are_saved_as_llm_dit_does(
    run: Run, config: Path, embedded: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder_module, "ZImageTextEncoderModel", lambda *_, **__: embedded.ours.text_encoder)
    assert run("encode", "a red star", "--output", "a.safetensors")[0] == 0
    assert run("generate", "a red star", "--encoder-only", "--save-embeddings", "b.safetensors")[0] == 0
    draw = ("generate", "a red star", "--quiet", "--guidance", "0", "--config", str(config))
    assert run(*draw, "--save-embeddings", "c.safetensors", "--output", "c.png")[0] == 0
    digests = [PromptFeatures.load(Path(f"{name}.safetensors")).digest for name in "abc"]
    assert len(set(digests)) == 1
    code, _, error = run("generate", "x", "--encoder-only", "--save-embeddings", "d.safetensors", "--steps", "3")
    assert (code, "--steps: of a picture" in error) == (2, True)
    code, _, error = run("generate", "x", "--encoder-only")
    assert (code, "name their file with --save-embeddings FILE" in error) == (2, True)


def test_the_page_of_the_configuration_is_the_tables() -> None:
    page = config_page.PAGE
    assert page.rendered(page.text, _parser()) == page.text, "run: python -m benchmarks.docs.config_page"
    with pytest.raises(ValueError, match="needs the line"):
        page.rendered("# Configuration", _parser())


def test_the_pipeline_takes_a_file(config: Path, embedded: Pair) -> None:
    prepared = ZImagePipeline.prepare(config=config, device="cpu")
    assert (prepared.sources.defaults.height, prepared.sources.defaults.num_inference_steps) == (64, 2)
    assert prepared.sources.defaults.configured == {"seed": 3}
    before = embedded.ours.sources
    try:
        embedded.ours.sources = prepared.sources
        drawn = np.asarray(embedded.ours("a red star", output_type="np"))
    finally:
        embedded.ours.sources = before
    plain = embedded.ours("a red star", height=64, width=96, num_inference_steps=2, seed=3, output_type="np")
    assert np.array_equal(drawn, np.asarray(plain))
    assert ZImagePipeline.prepare(torch_dtype="torch.bfloat16").sources.dtypes["transformer"] == "bfloat16"
    with pytest.raises(ValueError, match="dtype and torch_dtype are one argument"):
        ZImagePipeline.prepare(dtype="float32", torch_dtype="bfloat16")


def test_llm_dits_calls_are_ours(embedded: Pair) -> None:
    image = np.full((64, 96, 3), 120, np.uint8)
    ours, quick = embedded.ours, dict[str, Any](num_inference_steps=2, seed=3, output_type="np")
    aliased = ours.img2img("a red star", image, 0.5, **quick)
    assert np.array_equal(np.asarray(aliased), np.asarray(ours("a red star", image=image, strength=0.5, **quick)))
    passes = [{"scale": 0.5, "steps": 2}, {"scale": 1.0, "steps": 2, "strength": 0.5}]
    aliased = ours.generate_multipass("a red star", 128, 64, passes, seed=3, output_type="np")
    plain = ours("a red star", width=128, height=64, passes=passes, seed=3, output_type="np")
    assert np.array_equal(np.asarray(aliased), np.asarray(plain))
