"""Where a pipeline's weights come from: the checkpoint's own files, single files from elsewhere, all errors at once."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from max_zimage import ZImagePipeline
from max_zimage.embedded import PATH as EMBEDDED
from max_zimage.errors import CheckpointError
from tests.references.tiny import original_transformer, original_vae, save_single

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def single_transformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded transformer under the names of single-file checkpoints, its matrices fused."""
    path = tmp_path_factory.mktemp("single") / "z_image.safetensors"
    save_single(path, original_transformer(load_file(EMBEDDED / "transformer" / WEIGHTS)))
    return path


def test_a_checkpoint_brings_its_own_files() -> None:
    sources = ZImagePipeline.prepare(device="cpu").sources
    assert sources.files["transformer"] == [EMBEDDED / "transformer" / WEIGHTS]
    assert set(sources.dtypes.values()) == {"float32"}
    assert sources.nbytes["transformer"] == 4 * 8_797_888


def test_a_file_without_a_folder_belongs_to_the_transformer(single_transformer: Path) -> None:
    sources = ZImagePipeline.prepare(device="cpu", weight_path=single_transformer).sources
    assert sources.files["transformer"] == [single_transformer]
    assert sources.files["vae"] == [EMBEDDED / "vae" / WEIGHTS]
    assert (
        sources.plans["transformer"].format != ZImagePipeline.prepare(device="cpu").sources.plans["transformer"].format
    )


def test_single_files_draw_the_same_picture(single_transformer: Path, pipeline: ZImagePipeline, tmp_path: Path) -> None:
    folder = tmp_path / "vae"
    folder.mkdir()
    save_single(folder / "ae.safetensors", original_vae(load_file(EMBEDDED / "vae" / WEIGHTS)))
    expected = pipeline("a blue ring", num_inference_steps=2, seed=5)[0]
    single = ZImagePipeline.from_pretrained(device="cpu", weight_path=[single_transformer, folder / "ae.safetensors"])
    assert single.sources.files["vae"] == [folder / "ae.safetensors"]
    drawn = single("a blue ring", num_inference_steps=2, seed=5)[0]
    np.testing.assert_array_equal(np.asarray(drawn), np.asarray(expected))


def test_what_is_wrong_with_all_components_is_said_together(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(EMBEDDED, broken)
    for component in ("transformer", "vae"):
        path = broken / component / WEIGHTS
        tensors = load_file(path)
        tensors["stray.weight"] = tensors.pop(next(iter(tensors))).clone()
        save_file(tensors, path)
    with pytest.raises(CheckpointError) as caught:
        ZImagePipeline.from_pretrained(broken, device="cpu")
    message = str(caught.value)
    assert message.count("1 missing, 1 unexpected") == 2
    assert "transformer: " in message
    assert "vae: " in message
    assert "stray.weight" in message
