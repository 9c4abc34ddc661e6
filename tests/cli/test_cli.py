"""The command line: what it draws, what it says, and how it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from max.driver import accelerator_count
from PIL import Image

from max_zimage import ZImagePipeline
from max_zimage.cli import saving
from max_zimage.cli.errors import BadInput, checking
from max_zimage.cli.main import main
from max_zimage.errors import RequestError
from max_zimage.images.save import ImageFileError, save_image
from max_zimage.request.metadata import GenerationParameters, read_parameters
from tests.paths import INSTALLED, ROOT

QUICK = ("--steps", "2", "--height", "64", "--width", "96")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command line in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            code = main(arguments)
        except SystemExit as exit:
            code = int(exit.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture
def draws(pipeline: ZImagePipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Load nothing: draw with the one pipeline of this file."""
    monkeypatch.setattr(ZImagePipeline, "from_prepared", lambda prepared: pipeline)


@pytest.fixture
def compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail as soon as anything is loaded."""

    def from_prepared(prepared: object) -> None:
        raise AssertionError("loading began")

    monkeypatch.setattr(ZImagePipeline, "from_prepared", from_prepared)


@pytest.fixture(scope="module")
def pipeline() -> ZImagePipeline:
    return ZImagePipeline.from_pretrained()


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_one_command_draws_and_another_repeats(tmp_path: Path, run: Run, draws: None) -> None:
    words = ("generate", "a green circle", "--seed", "3", *QUICK, "--json", "--output", "a.png")
    environment = os.environ | {"PYTHONPATH": INSTALLED}  # as a process of its own
    whole = [sys.executable, "-m", "max_zimage", *words]
    done = subprocess.run(whole, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)  # the only thing on stdout
    assert said["files"] == [str(tmp_path / "a.png")]
    assert said["seeds"] == [3]
    assert said["seconds"]["generate"] == pytest.approx(sum(said["seconds"]["pictures"]), abs=0.01)
    assert said["seconds"]["load"] > 0
    parameters = read_parameters(tmp_path / "a.png")
    assert said["parameters"] == [json.loads(json.dumps(asdict(parameters)))]
    assert (parameters.prompt, parameters.height, parameters.width) == ("a green circle", 64, 96)
    assert (parameters.num_inference_steps, parameters.model, parameters.dtype) == (2, "tiny-zimage", "float32")
    assert "Compiling graphs: 0/" in done.stderr
    assert "Denoising: 2/2 in" in done.stderr

    code, out, err = run("generate", "--from", "a.png", "--output", "again.png")
    assert code == 0, err
    assert "again.png: 96x64 pixels, seed 3" in out
    assert np.array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "again.png"))
    assert read_parameters(tmp_path / "again.png") == parameters


def test_flags_come_before_the_picture_that_is_repeated(run: Run, draws: None, tmp_path: Path) -> None:
    assert run("generate", "a red star", *QUICK, "--guidance", "1.5", "--seed", "8", "--output", "a.png")[0] == 0
    first = read_parameters(tmp_path / "a.png")
    assert run("generate", "a blue star", "--from", "a.png", "--seed", "9", "--steps", "3", "--output", "b.png")[0] == 0
    changed: Callable[..., GenerationParameters] = replace  # most fields are those of the table, unknown to mypy
    second = changed(first, prompt="a blue star", seed=9, num_inference_steps=3)
    assert read_parameters(tmp_path / "b.png") == second

    save_image(pixels(tmp_path / "a.png"), tmp_path / "levels.png", changed(first, sigmas=(1.0, 0.5)).to_json())
    assert run("generate", "--from", "levels.png", "--output", "c.png")[0] == 0
    assert read_parameters(tmp_path / "c.png").sigmas == (1.0, 0.5)
    assert run("generate", "--from", "levels.png", "--steps", "1", "--output", "d.png")[0] == 0
    assert read_parameters(tmp_path / "d.png").sigmas is None


def test_a_step_cache_is_remembered(run: Run, draws: None, tmp_path: Path) -> None:
    cache = "taylorseer:cache_interval=4,warmup_steps=2,max_order=1"
    for name, flags in (("a.png", ["--step-cache", cache]), ("b.png", ["--from", "a.png"])):
        assert run("generate", "--seed", "3", "--steps", "8", *flags, "--output", name)[0] == 0
        assert read_parameters(tmp_path / name).step_cache == cache


def test_several_pictures_each_repeatable(run: Run, draws: None, tmp_path: Path) -> None:
    code, out, _ = run("generate", "a red star", *QUICK, "--seed", "5", "--count", "3", "--json")
    assert code == 0
    said = json.loads(out)
    assert said["seeds"] == [5, 6, 7]
    assert [Path(file).name for file in said["files"]] == ["zimage-5.png", "zimage-6.png", "zimage-7.png"]
    assert [read_parameters(Path(file)).seed for file in said["files"]] == [5, 6, 7]
    assert not np.array_equal(pixels(tmp_path / "zimage-5.png"), pixels(tmp_path / "zimage-6.png"))
    assert run("generate", "--from", "zimage-6.png", "--quiet") == (0, "", "")
    assert np.array_equal(pixels(tmp_path / "zimage-6.png"), pixels(tmp_path / "zimage-6-1.png"))


def test_nothing_is_overwritten(run: Run, draws: None, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("mine")
    code, out, _ = run("generate", *QUICK, "--output", "a.png")
    assert code == 0
    assert 'No prompt was given; drawing "a red star on a blue background".' in out
    assert (tmp_path / "a.png").read_text() == "mine"
    assert read_parameters(tmp_path / "a-1.png").prompt == "a red star on a blue background"
    assert "a-1.png" in out
    assert "Loading and compiling took" in out


def test_other_formats_and_a_warning(run: Run, draws: None, tmp_path: Path) -> None:
    code, _, err = run("generate", *QUICK, "--guidance", "0", "--negative", "blurry", "--output", "a.webp")
    assert code == 0
    assert "max-zimage: warning: --guidance is 0: the negative prompt has no effect" in err
    assert read_parameters(tmp_path / "a.webp").guidance_scale == 0


def test_weight_files_are_remembered(run: Run, draws: None, tmp_path: Path) -> None:
    weights = str(ROOT / "max_zimage/assets/tiny-zimage/vae/diffusion_pytorch_model.safetensors")
    assert run("generate", *QUICK, "--weight-path", weights, "--output", "a.png")[0] == 0
    assert run("generate", "--from", "a.png", "--output", "b.png")[0] == 0
    for name in ("a.png", "b.png"):
        assert read_parameters(tmp_path / name).weight_paths == (weights,)
    assert run("generate", "--from", "a.png", "--model", "tiny-zimage", "--output", "c.png")[0] == 0
    assert read_parameters(tmp_path / "c.png").weight_paths == ()


def test_a_picture_that_cannot_be_saved_is_not_lost(
    run: Run, draws: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(*arguments: object) -> None:
        if arguments[1] == Path("a.jpg"):
            raise ImageFileError("a.jpg cannot be written: No space left on device")
        save_image(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(saving, "save_image", save)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere").mkdir()
    code, out, err = run("generate", *QUICK, "--output", "a.jpg")
    saved = tmp_path / "elsewhere" / "a.png"
    assert code == 1
    assert f"max-zimage: error: a.jpg cannot be written: No space left on device; the picture is in {saved}" in err
    assert str(saved) in out
    assert pixels(saved).shape == (64, 96, 3)


REFUSED = {
    "size": (["--height", "100"], "--height must be a multiple of 16, got 100; the nearest are 96 and 112"),
    "beyond the limit": (["--width", "100000"], "width must be from 16 to "),
    "no steps": (["--steps", "0"], "--steps must be from 1 to 1000, got 0"),
    "guidance": (["--guidance", "-1"], "--guidance must be a finite number of at least 0, got -1.0"),
    "two things": (["--steps", "0", "--height", "8"], "the request has 2 problems:"),
    "seed": (["--seed", "-1"], "seed must be from 0 to 9223372036854775807, got -1"),
    "count": (["--count", "0"], "argument --count: must be at least 1, got 0"),
    "no number": (["--steps", "many"], "argument --steps: must be a whole number, got 'many'"),
    "device": (["--device", "tpu"], 'device must be "auto", "cpu", "gpu" or "gpu:N", got \'tpu\''),
    "dtype": (["--dtype", "float16"], "'float32', 'bfloat16'); bfloat16 takes as much room (see"),
    "folder": (["--output", "nowhere/a.png"], "folder nowhere does not exist"),
    "ending": (["--output", "a.gif"], "the ending must be one of .png, .jpg, .jpeg, .webp, got '.gif'"),
    "model": (["--model", "nothing"], "no model at nothing: there is no such directory"),
    "hub": (["--model", "nobody/nothing"], "nobody/nothing is not, or not completely, in the Hugging Face cache"),
    "tokens": (["a " * 600], "tokens, at most 512 are allowed; shorten it"),
    "negative tokens": (["--negative", "a " * 600], "the negative prompt has"),
    "no picture": (["--from", "absent.png"], "absent.png is no file; name a picture that max_zimage saved"),
    "weights": (["--weight-path", "absent.safetensors"], "absent.safetensors"),
    "flag": (["--zzz", "64x64"], "--zzz is not known (see max-zimage generate --help)"),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused_before_anything_is_loaded(
    run: Run, compiles_nothing: None, tmp_path: Path, arguments: list[str], message: str
) -> None:
    code, out, err = run("generate", *arguments)
    assert (code, out.replace('No prompt was given; drawing "a red star on a blue background".\n', "")) == (2, "")
    assert err.startswith("max-zimage: error: ")
    assert message in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(accelerator_count() > 0, reason="has an accelerator")
def test_a_gpu_that_is_not_there(run: Run, compiles_nothing: None) -> None:
    said = "max-zimage: error: device 'gpu' was asked for, and no accelerator is available here; use --device cpu\n"
    assert run("generate", "a star", "--device", "gpu")[::2] == (2, said)


def test_a_picture_without_parameters(run: Run, compiles_nothing: None, tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "plain.png")
    code, _, err = run("generate", "--from", "plain.png")
    assert code == 2
    assert "plain.png holds no generation parameters; only pictures saved by max_zimage do" in err


def test_too_little_memory_is_said_before_loading(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("max_zimage.pipeline.load_components.available_memory", lambda: 2**20)
    code, _, err = run("generate", "a star")
    assert code == 2
    assert "the checkpoint's weights need 43 MiB, 1 MiB are available" in err


def test_a_failure_is_one_line_and_a_traceback_only_if_asked_for(
    run: Run, pipeline: ZImagePipeline, draws: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def generate(request: object) -> None:
        raise ValueError("out of luck")

    monkeypatch.setattr(pipeline, "generate", generate)
    code, _, err = run("generate", "a star", "--quiet")
    assert (code, err) == (1, "max-zimage: error: ValueError: out of luck\n")
    assert "Traceback" in run("generate", "a star", "--debug")[2]


def test_interrupted(tmp_path: Path) -> None:
    script = (
        "from max_zimage.cli import main\ndef run(a): raise KeyboardInterrupt\nmain._run = run\nmain.main(['info'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=dict(os.environ), capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (130, "max-zimage: interrupted\n")


@pytest.mark.parametrize(
    ("arguments", "code"), [(["--help"], 0), (["generate", "--help"], 0), (["generate", "--steps", "x"], 2), ([], 0)]
)
def test_help_and_mistakes_in_arguments_import_nothing_heavy(arguments: list[str], code: int) -> None:
    script = (
        "import sys\nfrom max_zimage.cli.main import main\ntry: main(sys.argv[1:])\n"
        "finally: print(sorted({'max', 'numpy', 'PIL', 'rich', 'transformers'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=ROOT, env=dict(os.environ), capture_output=True, text=True
    )
    assert done.returncode == code
    assert done.stderr.endswith("[]\n")


def test_info(run: Run, compiles_nothing: None) -> None:
    code, out, _ = run("info", "--json", "--height", "256")
    assert code == 0
    facts = json.loads(out)
    assert set(facts["versions"]) == {"max_zimage", "max", "python"}
    assert (facts["devices"][0]["name"], "widened" in facts["devices"][0]["bfloat16_products"]) == ("cpu", True)
    parts = {part["name"]: part for part in facts["model"]["components"]}
    assert set(parts) == {"text_encoder", "transformer", "vae"}
    for part in parts.values():
        assert part["bytes"] == 4 * part["parameters"]
        assert part["dtype"] == "float32"
    assert 11e6 < sum(part["parameters"] for part in parts.values()) < 12e6
    memory = facts["memory"]
    assert (memory["height"], memory["width"], memory["fits"]) == (256, 128, True)
    assert memory["weights_bytes"] == sum(part["bytes"] for part in parts.values())

    code, out, _ = run("info")
    assert code == 0
    assert "128x128 pixels" in out
    assert "it fits" in out
    assert run("info", "--model", "nothing")[0] == 2
    assert "the nearest are 96 and 112" in run("info", "--width", "100")[2]


def test_only_what_goes_wrong_in_checks_is_bad_input() -> None:
    with pytest.raises(BadInput, match="--steps must be"), checking():
        raise RequestError.of("num_inference_steps", "{field} must be from 1 to 1000")
    with pytest.raises(RuntimeError), checking():
        raise RuntimeError("no memory")
