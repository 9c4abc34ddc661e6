"""`max-zimage verify`: the embedded model passes, and a fault in the engine's copy is named by its stage."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from max_zimage.cli.main import main
from max_zimage.device.dtypes import DTYPES, ModelDtype
from max_zimage.device.memory import NotEnoughMemoryError
from max_zimage.diagnosis import reference, reference_process, verify
from max_zimage.diagnosis.asked import Asked
from max_zimage.diagnosis.reference_process import ReferenceFailedError, fitting, run_reference
from max_zimage.diagnosis.stages import STAGES, Comparison, bound, lost_in_bfloat16
from max_zimage.embedded import PATH as EMBEDDED
from tests.references.planting import planted_copy
from tests.tolerances import STAGES_L2

ASKED = Asked(prompt="a red star on a blue background", height=128, width=80, steps=2, dtypes=("float32",))
QUICK = ("--height", "128", "--width", "80", "--steps", "2", "--dtype", "float32")
NAMES = [stage.name for stage in STAGES]
Told = dict[str, Any]
Run = Callable[..., tuple[int, Told]]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> verify.References:
    """Diffusers on the embedded model, in the process that the command starts."""
    return run_reference(EMBEDDED, ASKED, tmp_path_factory.mktemp("reference"))


@pytest.fixture
def run(theirs: verify.References, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command beside what diffusers made of the embedded model: exit code and its JSON."""
    seen: list[Asked] = []

    def given(directory: Path, asked: Asked, folder: Path) -> verify.References:
        seen.append(asked)
        return theirs

    monkeypatch.setattr(verify, "run_reference", given)

    def run(*arguments: str) -> tuple[int, Told]:
        code = main(["verify", *QUICK, "--json", *arguments])
        assert seen == [ASKED]
        return code, json.loads(capsys.readouterr().out)

    return run


def test_the_embedded_model_passes(run: Run) -> None:
    code, told = run()
    assert code == 0, told
    assert (told["verdict"], told["first_failure"], told["left_out"]) == ("passed", None, [])
    assert [each["stage"] for each in told["comparisons"]] == NAMES
    assert all(each["relative_l2"] <= each["bound"] for each in told["comparisons"])
    bounds = {each["stage"]: each["bound"] for each in told["comparisons"]}
    assert bounds["velocity"] == STAGES_L2["prediction"]
    assert bounds["tokens"] == 0
    assert told["versions"]["diffusers"]
    assert told["checkpoint"]["layers"] == 6
    assert told["checkpoint"]["components"]["vae"]["digest"].startswith("sha256:")
    assert str(EMBEDDED) not in json.dumps(told)


FAULTS = [
    ("text_encoder", "model.layers.0.mlp.down_proj.weight", "features", None),
    ("transformer", "context_refiner.0.feed_forward.w2.weight", "caption tokens", None),
    ("transformer", "noise_refiner.0.attention.to_v.weight", "first block", None),
    ("transformer", "layers.3.feed_forward.w2.weight", "velocity", "layers.3"),
    ("vae", "decoder.conv_in.weight", "pixels", None),
]


@pytest.mark.parametrize(("component", "tensor", "stage", "block"), FAULTS)
def test_a_changed_weight_is_named(
    tmp_path: Path, run: Run, component: str, tensor: str, stage: str, block: str | None
) -> None:
    code, told = run(str(planted_copy(tmp_path, component, tensor, 4.0)))
    assert code == 1
    assert told["first_failure"] == stage
    assert told["block"] == block or stage != "velocity"
    assert block is None or told["points_to"].endswith(f"the first one that is off is {block}")
    assert told["failed"][0] == stage
    # Stages are given what diffusers made of those before: nothing is blamed for what came to it.
    assert set(told["failed"]) <= {stage, *(["velocity", "latents"] if component == "transformer" else [])}


def test_weight_files_take_the_place_of_the_checkpoints(tmp_path: Path, run: Run) -> None:
    copy = planted_copy(tmp_path, "transformer", "noise_refiner.0.attention.to_v.weight", 4.0)
    (file,) = (copy / "transformer").glob("*.safetensors")
    code, told = run("--weight-path", str(file))
    assert (code, told["first_failure"]) == (1, "first block")


def changed(tmp_path: Path, file: str, change: Callable[[str], str]) -> Path:
    """A copy of the embedded model with one text file changed."""
    copy = tmp_path / "model"
    shutil.copytree(EMBEDDED, copy)
    text = (copy / file).read_text()
    assert change(text) != text
    (copy / file).write_text(change(text))
    return copy


def test_another_chat_template_is_named(tmp_path: Path, run: Run) -> None:
    places = ["tokenizer/chat_template.jinja", "tokenizer/tokenizer_config.json"]
    file = next(name for name in places if (EMBEDDED / name).is_file() and "im_start" in (EMBEDDED / name).read_text())
    code, told = run(str(changed(tmp_path, file, lambda text: text.replace("assistant", "helper"))))
    assert (code, told["first_failure"], told["failed"]) == (1, "tokens", ["tokens"])
    assert "chat template" in told["points_to"]


def test_another_shift_is_named(tmp_path: Path, run: Run) -> None:
    def shifted(text: str) -> str:
        return json.dumps({**json.loads(text), "shift": 4.0})

    code, told = run(str(changed(tmp_path, "scheduler/scheduler_config.json", shifted)))
    assert (code, told["first_failure"], told["failed"]) == (1, "schedule", ["schedule", "latents"])
    assert "shift" in told["points_to"]


def test_another_scaling_factor_is_named(
    tmp_path: Path, run: Run, theirs: verify.References, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the reference's side, for the engine would compile its decoder anew."""

    def scaled(text: str) -> str:
        return json.dumps({**json.loads(text), "scaling_factor": 0.4})

    copy = changed(tmp_path, "vae/config.json", scaled)
    with torch.no_grad():
        pixels = reference._pictures(copy, ASKED, torch.float32, dict(theirs["float32"]))
    other = {"float32": {**theirs["float32"], **pixels}}
    monkeypatch.setattr(verify, "run_reference", lambda directory, asked, folder: other)
    report = verify.verify(verify.Subject(reference=str(copy)), ASKED)
    assert report.failed == ["pixels"]
    text = "\n".join(report.lines())
    assert "first stage that fails: pixels" in text
    assert "scaling_factor" in text
    assert "beside another one in diffusers" in text
    assert "FAILS" in text


@pytest.mark.slow
def test_bfloat16_passes_with_diffusers_in_a_process_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    """Its graphs take minutes to compile."""
    assert main(["verify", "--height", "128", "--width", "80", "--steps", "2"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.endswith("  ok")]
    assert len(rows) == 2 + 2 + 4 * (len(NAMES) - 2)


@pytest.fixture(scope="module")
def theirs_in_both(tmp_path_factory: pytest.TempPathFactory) -> verify.References:
    """The same in float32 and in bfloat16."""
    return run_reference(EMBEDDED, replace(ASKED, dtypes=DTYPES), tmp_path_factory.mktemp("both"))


@pytest.mark.slow
@pytest.mark.parametrize("dtypes", [DTYPES, DTYPES[1:]], ids=["both", "bfloat16 alone"])
@pytest.mark.parametrize(
    ("component", "tensor", "stage", "block"),
    # Of the first block one number of a value's weight is too little: behind a norm it is 1.5 % of the result.
    [(*each[:1], "all_x_embedder.2-1.weight", *each[2:]) if each[2] == "first block" else each for each in FAULTS],
)
def test_a_fault_is_named_in_each_dtype(
    tmp_path: Path,
    theirs_in_both: verify.References,
    monkeypatch: pytest.MonkeyPatch,
    component: str,
    tensor: str,
    stage: str,
    block: str | None,
    dtypes: tuple[ModelDtype, ...],
) -> None:
    """Of whichever dtypes the two sides have; also where nothing tells what bfloat16 loses."""
    monkeypatch.setattr(verify, "run_reference", lambda *_: {each: theirs_in_both[each] for each in dtypes})
    # More than bfloat16 loses; of a number of 16 in a block a hundredth of its result, where that loses a twentieth.
    copy = planted_copy(tmp_path, component, tensor, 256.0 if component == "transformer" else 16.0)
    report = verify.verify(verify.Subject(model=str(copy)), replace(ASKED, dtypes=dtypes))
    for engine, other in itertools.product(dtypes, dtypes):
        off = [c.stage for c in report.comparisons if (c.engine, c.reference) == (engine, other) and not c.holds]
        assert off[:1] == [stage], (engine, other, report.comparisons)
        assert set(off) <= {stage, *(["velocity", "latents"] if component == "transformer" else [])}
    assert report.failed[0] == stage
    assert report.block == block or stage != "velocity"


def test_without_diffusers_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reference_process, "find_spec", lambda name: None if name in ("torch", "diffusers") else 1)
    assert main(["verify"]) == 2
    said = capsys.readouterr().err
    assert 'diffusers and torch are not installed; install what it needs: pip install "max-zimage[verify]"' in said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--height", "100"], "--height must be a multiple of 16"),
        (["--steps", "0"], "--steps"),
        (["--device", "gpu:9"], "device 'gpu:9' was asked for"),
        (["no/such/model/here"], "no model at"),
        (["--reference", "no/such/model/here"], "no model at"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(
    flags: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*arguments: object) -> None:
        raise AssertionError("diffusers began")

    monkeypatch.setattr(verify, "run_reference", never)
    assert main(["verify", *flags]) == 2
    assert said in capsys.readouterr().err


def test_memory_is_asked_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    gigabyte = 2**30
    sizes: Any = {"float32": {"transformer": 24 * gigabyte}, "bfloat16": {"transformer": 12 * gigabyte}}
    assert fitting(sizes, 64 * gigabyte) == (["float32", "bfloat16"], [])
    fits, said = fitting(sizes, 20 * gigabyte)
    assert fits == ["bfloat16"]
    assert said == [
        "diffusers in float32 was left out: its transformer needs about 28.6 GiB of memory, 20.0 GiB are free"
    ]
    monkeypatch.setattr(verify, "available_memory", lambda: 0)
    with pytest.raises(NotEnoughMemoryError, match="left out"):
        verify.verify(verify.Subject(), ASKED)


def test_a_reference_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(ReferenceFailedError, match="diffusers failed on"):
        run_reference(tmp_path / "none", ASKED, tmp_path)


def test_bounds_and_comparisons() -> None:
    by_name = {stage.name: stage for stage in STAGES}
    velocity, tokens = by_name["velocity"], by_name["tokens"]
    assert bound(velocity, "float32", "float32", 0.01, on_host=True) == STAGES_L2["prediction"]
    assert bound(velocity, "float32", "float32", 0.1, on_host=True) == pytest.approx(0.1 * 2**-13)
    assert bound(velocity, "bfloat16", "float32", 0.01, on_host=True) == pytest.approx(0.02, rel=1e-3)
    assert bound(velocity, "bfloat16", "bfloat16", 0.01, on_host=True) == pytest.approx(0.031, rel=1e-3)
    assert bound(velocity, "float32", "float32", 0.004, on_host=False) == 2e-3
    assert bound(velocity, "bfloat16", "bfloat16", None, on_host=True) == 0.05
    assert bound(velocity, "float32", "float32", None, on_host=True) == STAGES_L2["prediction"]
    assert bound(tokens, "bfloat16", "bfloat16", None, on_host=True) == 0
    values: Any = {"float32": {"velocity": np.array([3.0, 4.0])}, "bfloat16": {"velocity": np.array([3.0, 4.5])}}
    assert lost_in_bfloat16(velocity, values) == pytest.approx(0.1)
    pair: Any = ("float32", "float32")
    same = Comparison.of(velocity, np.array([3.0, 4.5]), values["float32"]["velocity"], 0.1, pair)
    assert same.holds
    assert same.max_relative == pytest.approx(0.125)
    assert not Comparison.of(velocity, np.array([np.nan, 4.0]), values["float32"]["velocity"], 1.0, pair).holds
    other = Comparison.of(velocity, np.zeros(3), values["float32"]["velocity"], 1.0, pair)
    assert not other.holds
    assert "3 numbers here, 2 in diffusers" in other.problem
    assert replace(other, relative_l2=0.0).holds
