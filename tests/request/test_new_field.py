"""A new field is two files: the diff of the page about it, applied to a copy, reaches every front end."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT

PAGE = ROOT / "docs" / "how-to" / "add-a-request-field.md"

PROGRAM = """
import argparse, json
from max_zimage.cli.field_flags import given_fields
from max_zimage.cli.main import _parser
from max_zimage.errors import RequestError
from max_zimage.request import wire
from max_zimage.request.fields import FLAGS, ROWS
from max_zimage.request.limits import Limits, RequestDefaults
from max_zimage.request.metadata import GenerationParameters
from max_zimage.request.request import GenerationRequest
from max_zimage.sampling.schedule import ScheduleSpec
from max_zimage.serving.http.api_names import IMAGES, RESPONSES, refused
from max_zimage.serving.http.schema import EDIT, GENERATION, given

limits = Limits.of(axes_lens=(1536, 512, 512), max_positions=2048, latent_channels=16, caption_dim=8)
defaults = RequestDefaults(height=128, width=96, num_inference_steps=8, guidance_scale=2.0)
spec = ScheduleSpec(shift=3.0, num_train_timesteps=1000)

def make(**arguments):
    return GenerationRequest.create(limits=limits, defaults=defaults, prompt="x", seed=1, **arguments)

def key(request):
    return wire.sharing_key(request, request.schedule(spec))

flags = given_fields(_parser().parse_args(["generate", "x", "--sigma-exponent", "1.5"]))
body = given(GENERATION.model_validate({"prompt": "x", "sigma_exponent": 1.5}))
plain, changed = make(), make(sigma_exponent=body["sigma_exponent"])
written = GenerationParameters.of(changed, model="m", weight_paths=(), dtype="float32", device="cpu")
since = ROWS["sigma_exponent"].kept.since
old = json.loads(written.to_json()) | {"format_version": since - 1}
del old["sigma_exponent"]
try:
    make(sigma_exponent=9)
except RequestError as error:
    images, responses = refused(error, IMAGES), refused(error, RESPONSES)
    said = [str(error), error.said(FLAGS), str(images), images.param, str(responses), responses.param]
print(json.dumps({
    "flag": flags["sigma_exponent"],
    "body": [body["sigma_exponent"], "sigma_exponent" in EDIT.model_fields],
    "default": plain.sigma_exponent,
    "wire": wire.of_text(wire.to_text(changed)).sigma_exponent,
    "shares": [key(plain) == key(make(sigma_exponent=1)), key(plain) == key(changed)],
    "kept": [json.loads(written.to_json())["format_version"] >= since, written.sigma_exponent],
    "from before": GenerationParameters.from_json(json.dumps(old)).sigma_exponent,
    "said": said,
    "acts": [float(level) for level in changed.schedule(spec).sigmas[1:3]],
}))
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "max_zimage", root / "max_zimage", ignore=shutil.ignore_patterns("assets", "__pycache__"))
    return root


def test_the_diff_of_the_page_is_enough(copy: Path) -> None:
    (diff,) = re.findall(r"```diff\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert re.findall(r"^\+\+\+ b/(.*)", diff, re.MULTILINE) == [
        "max_zimage/request/fields.py",
        "max_zimage/request/request.py",
    ]
    (copy / "field.diff").write_text(diff, encoding="utf-8")
    applied = subprocess.run(["git", "apply", "field.diff"], cwd=copy, capture_output=True, text=True)
    assert applied.returncode == 0, f"{PAGE.name} is out of date: {applied.stderr}"
    environment = os.environ | {"PYTHONPATH": str(copy)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=copy, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rule = "must be from 0.25 to 4, got 9.0; usual are 0.5 to 2"
    said = [f"sigma_exponent {rule}", f"--sigma-exponent {rule}", f"sigma_exponent {rule}", "sigma_exponent"]
    found = json.loads(done.stdout)
    levels = found.pop("acts")
    assert found == {
        "flag": 1.5,
        "body": [1.5, True],
        "default": 1.0,
        "wire": 1.5,
        "shares": [True, False],
        "kept": [True, 1.5],
        "from before": 1.0,
        "said": [*said, f"sigma_exponent {rule}", "metadata"],
    }
    powers = [(index / 8) ** 1.5 for index in (7, 6)]
    assert levels == pytest.approx([3 * power / (1 + 2 * power) for power in powers], rel=1e-6)
