"""What is drawn where a request says nothing: from the checkpoint's files, by the rules that requests are held to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from max.pipelines.lib.config import PipelineConfig

from max_zimage import ZImagePipeline
from max_zimage.checkpoint.config_reader import ConfigError
from max_zimage.checkpoint.defaults import request_defaults
from max_zimage.cli.main import main
from max_zimage.request.limits import Limits, RequestDefaults
from max_zimage.sampling.schedule import ScheduleSpec
from max_zimage.serving.context_tokenizer import ZImageTokenizer
from tests.references.checkpoints import changed, copied

BASE, TURBO = (ScheduleSpec(shift=shift, num_train_timesteps=1000) for shift in (6.0, 3.0))
PUBLISHED = Limits(max_height=8192, max_width=8192, max_tokens=1504, latent_channels=16, caption_dim=2560)
VAE, INDEX = "vae/config.json", "model_index.json"


def defaults(**named: Any) -> RequestDefaults:
    return request_defaults(
        limits=PUBLISHED,
        schedule=BASE,
        sample_size=(1024, 512),
        steps=50,
        named=named,
    )


def both_readings(model: Path) -> RequestDefaults:
    """Those of the pipeline, once they are found to be the server's too."""
    prepared = ZImagePipeline.prepare(model, device="cpu")
    assert served(model, prepared.config) == prepared.sources.defaults
    return prepared.sources.defaults


def served(model: Path, config: PipelineConfig) -> RequestDefaults:
    return ZImageTokenizer(str(model), config, "tokenizer", max_length=512, default_num_inference_steps=50).defaults


def test_defaults_of_the_published_checkpoints() -> None:
    turbo = request_defaults(limits=PUBLISHED, schedule=TURBO, sample_size=(1024, 1024), steps=50)
    assert turbo == RequestDefaults(height=1024, width=1024, num_inference_steps=8, guidance_scale=0.0)
    base = request_defaults(limits=PUBLISHED, schedule=BASE, sample_size=(1024, 1024), steps=50)
    assert base == RequestDefaults(height=1024, width=1024, num_inference_steps=50, guidance_scale=5.0)


def test_what_the_checkpoint_names_comes_first() -> None:
    found = defaults(width=768, num_inference_steps=12, guidance_scale=2)
    assert found == RequestDefaults(height=1024, width=768, num_inference_steps=12, guidance_scale=2.0)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("num_inference_steps", 8.7, "must be a whole number from 1 to 1000, got 8.7"),
        ("num_inference_steps", 8.0, "must be a whole number from 1 to 1000, got 8.0"),
        ("num_inference_steps", 0, "must be from 1 to 1000, got 0"),
        ("num_inference_steps", -4, "must be from 1 to 1000, got -4"),
        ("num_inference_steps", 10**400, "must be from 1 to 1000, got 1000000"),
        ("num_inference_steps", float("inf"), "must be a whole number from 1 to 1000, got inf"),
        ("num_inference_steps", True, "must be a whole number from 1 to 1000, got True"),
        ("num_inference_steps", None, "must be a whole number from 1 to 1000, got None"),
        ("num_inference_steps", [8], "must be a whole number from 1 to 1000, got [8]"),
        ("height", 1000, "must be a multiple of 16, got 1000; the nearest are 992 and 1008"),
        ("height", "1024", "must be a whole number from 16 to 8192, got '1024'"),
        ("width", 16384, "must be from 16 to 8192, got 16384"),
        ("guidance_scale", -1, "must be a finite number of at least 0, got -1"),
        ("guidance_scale", 1e6, "must be at most 1000, got 1000000.0"),
        ("guidance_scale", 10**400, "must be a finite number of at least 0, got a number beyond what a float can hold"),
        ("guidance_scale", float("nan"), "must be a finite number of at least 0, got nan"),
    ],
)
def test_a_default_that_no_request_could_ask_for(name: str, value: Any, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        defaults(**{name: value})
    (problem,) = caught.value.problems
    assert problem.startswith(f"model_index.json: _generation_defaults: {name} {says}")
    assert "NoneType" not in problem
    assert "(float)" not in problem


def test_an_unknown_default_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"may hold height, width, .* got steps = 3; take it out"):
        defaults(steps=3)


@pytest.mark.parametrize("named", [[], "fast", 8, False])
def test_defaults_that_are_no_object(tmp_path: Path, named: Any) -> None:
    model = changed(copied(tmp_path / "model"), INDEX, _generation_defaults=named)
    with pytest.raises(ConfigError, match=rf"{model}/model_index\.json: _generation_defaults: must be an object with"):
        ZImagePipeline.prepare(model, device="cpu")


def test_commands_say_it_with_the_files_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not with a flag's, although a request's number of steps has one."""
    model = changed(copied(tmp_path / "model"), INDEX, _generation_defaults={"num_inference_steps": 8.7})
    assert main(["info", "--model", str(model), "--device", "cpu"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    problem = "_generation_defaults: num_inference_steps must be a whole number from 1 to 1000, got 8.7"
    assert line == f"max-zimage: error: {model}/model_index.json: {problem}"


@pytest.mark.parametrize(
    ("size", "height", "width"), [(None, 1024, 1024), (256, 256, 256), ([128, 256], 128, 256), ([64, 64], 64, 64)]
)
def test_sizes_that_an_autoencoder_can_name(tmp_path: Path, size: Any, height: int, width: int) -> None:
    found = both_readings(changed(copied(tmp_path / "model"), VAE, sample_size=size))
    assert (found.height, found.width) == (height, width)


def test_null_is_no_size(tmp_path: Path) -> None:
    model = copied(tmp_path / "model")
    text = (model / VAE).read_text().replace('"sample_size": 128', '"sample_size": null')
    (model / VAE).write_text(text)
    assert both_readings(model).height == 1024


@pytest.mark.parametrize(
    "size", [0, -16, "128", 128.0, True, [], [128], [128, 128, 128], [128, "128"], {"height": 128}]
)
def test_what_is_no_size(tmp_path: Path, size: Any) -> None:
    model = changed(copied(tmp_path / "model"), VAE, sample_size=size)
    with pytest.raises(ConfigError) as caught:
        both_readings(model)
    wanted = "sample_size must be a whole number of pixels, a list of two (height, width), or left out, got "
    assert str(caught.value).startswith(f"{model / VAE}: {wanted}")


@pytest.mark.parametrize(
    ("size", "says"), [(1000, "a multiple of 16, got 1000"), (16384, "from 16 to 8192, got 16384")]
)
def test_a_size_that_cannot_be_drawn(tmp_path: Path, size: int, says: str) -> None:
    model = changed(copied(tmp_path / "model"), VAE, sample_size=size)
    with pytest.raises(ConfigError) as caught:
        ZImagePipeline.prepare(model, device="cpu")
    assert str(caught.value).startswith(f"{model / VAE}: sample_size ")
    assert says in str(caught.value)
    named = {"_generation_defaults": {"height": 64, "width": 96}}
    found = both_readings(changed(model, INDEX, **named))  # nothing is drawn in the size that cannot be
    assert (found.height, found.width) == (64, 96)
