"""Files of several components, and single files without a folder: each goes where its tensors belong."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from max_zimage import ZImagePipeline
from max_zimage.checkpoint import locate
from max_zimage.checkpoint.formats import open_source
from max_zimage.checkpoint.load import load
from max_zimage.checkpoint.parts import owner, parts_in
from max_zimage.checkpoint.tensors import Source
from max_zimage.checkpoint.weight_check import check_weights
from max_zimage.cli.main import main
from max_zimage.embedded import PATH as EMBEDDED
from max_zimage.errors import CheckpointError
from tests.checkpoint.test_quantized import bits, same, state_of
from tests.references.engine_weights import StateDict
from tests.references.gguf_files import Kind, llama_names, write
from tests.references.quantized import FORMATS
from tests.references.quantized import write as write_quantized
from tests.references.tiny import original_transformer, original_vae

FILES = {
    "text_encoder": EMBEDDED / "text_encoder" / "model.safetensors",
    "transformer": EMBEDDED / "transformer" / "diffusion_pytorch_model.safetensors",
    "vae": EMBEDDED / "vae" / "diffusion_pytorch_model.safetensors",
}


def _renamed(state: StateDict, prefix: str) -> StateDict:
    return {f"{prefix}{name}": values.clone() for name, values in state.items()}


def _stored(component: str) -> StateDict:
    return load_file(FILES[component])


def _all_in_one(folder: Path, transformer: str = "model.diffusion_model.", vae: str = "first_stage_model.") -> Path:
    """As ComfyUI saves a checkpoint."""
    encoder = "text_encoders.qwen3_4b."
    state = _renamed(original_transformer(_stored("transformer")), transformer)
    state |= _renamed(original_vae(_stored("vae")), vae)
    state |= _renamed(_stored("text_encoder"), f"{encoder}transformer.")
    save_file({**state, f"{encoder}logit_scale": torch.ones(())}, folder / "everything.safetensors")
    return folder / "everything.safetensors"


@pytest.mark.parametrize(
    "prefixes", [("model.diffusion_model.", "first_stage_model."), ("diffusion_model.", "vae."), ("", "vae.")]
)
def test_one_file_serves_every_component(prefixes: tuple[str, str], tmp_path: Path) -> None:
    """To the bit what the files of the folders are; nothing of the others is unexpected."""
    file = _all_in_one(tmp_path, *prefixes)
    found = ZImagePipeline.prepare(device="cpu", weight_path=file).sources
    own = ZImagePipeline.prepare(device="cpu").sources
    assert found.files == {name: [file] for name in FILES}
    for component, checked in found.plans.items():
        same(checked, own.plans[component], "float32")
    reasons = found.plans["vae"].dropped
    assert set(reasons.values()) == {"it belongs to the transformer", "it belongs to the text_encoder"}
    numbers = sum(tensor.numel() for name in FILES for tensor in _stored(name).values())
    read = check_weights(found.plans, found.dtypes)
    assert (read.damaged, read.numbers >= numbers) == ((), True)


def test_a_float8_file_of_every_component(tmp_path: Path) -> None:
    """Transformer and text encoder scaled, each with its own mark behind its prefix, and a VAE in bfloat16."""
    own = original_transformer(state_of("transformer"))
    parts = {"model.diffusion_model.": own, "text_encoders.qwen3_4b.transformer.": state_of("text_encoder")}
    written: StateDict = _renamed(original_vae(_stored("vae")), "first_stage_model.")
    wanted: StateDict = dict(written)
    for prefix, state in parts.items():
        file = tmp_path / "part.safetensors"
        form = replace(FORMATS["ComfyUI scaled fp8, old"], markers={f"{prefix}scaled_fp8": torch.zeros(2).bfloat16()})
        wanted |= write_quantized(form, _renamed(state, prefix), file)
        written |= load_file(file)
    save_file(written, tmp_path / "all.safetensors")
    save_file({name: values.contiguous() for name, values in wanted.items()}, tmp_path / "plain.safetensors")
    found = ZImagePipeline.prepare(device="cpu", weight_path=tmp_path / "all.safetensors").sources
    plain = ZImagePipeline.prepare(device="cpu", weight_path=tmp_path / "plain.safetensors").sources
    for component, checked in found.plans.items():
        same(checked, plain.plans[component], "float32")
        assert ("F8_E4M3 scaled" in checked.storage) == (component != "vae")


def test_diffusers_names_behind_a_prefix(tmp_path: Path) -> None:
    file = tmp_path / "merged.safetensors"
    save_file(_renamed(_stored("transformer"), "transformer."), file)
    found = ZImagePipeline.prepare(device="cpu", weight_path=file).sources.plans["transformer"]
    assert found.format == "diffusers names behind 'transformer.'"
    same(found, ZImagePipeline.prepare(device="cpu").sources.plans["transformer"], "bfloat16")


def test_single_files_are_told_by_their_names(tmp_path: Path) -> None:
    """As ComfyUI names them; the folder that they stand in is nobody's."""
    encoder, vae = tmp_path / "qwen_3_4b.safetensors", tmp_path / "ae.safetensors"
    save_file(_stored("text_encoder"), encoder)
    save_file(original_vae(_stored("vae")), vae)
    gguf = tmp_path / "z.gguf"
    write(gguf, original_transformer(state_of("transformer")), Kind.BF16)
    found = ZImagePipeline.prepare(device="cpu", weight_path=[gguf, vae, encoder]).sources
    assert found.files == {"text_encoder": [encoder], "transformer": [gguf], "vae": [vae]}
    own = ZImagePipeline.prepare(device="cpu").sources
    for component, checked in found.plans.items():
        same(checked, own.plans[component], "float32")


def test_a_gguf_text_encoder_goes_to_the_text_encoder(tmp_path: Path) -> None:
    file = tmp_path / "Qwen3-4B-Q8_0.gguf"
    write(file, llama_names(state_of("text_encoder")), Kind.Q8_0, architecture="qwen3")
    found = ZImagePipeline.prepare(device="cpu", weight_path=file).sources
    assert found.files["text_encoder"] == [file]
    assert found.files["transformer"] == [FILES["transformer"]]
    assert found.limits.has_final_norm


def test_a_folder_decides_before_the_names(tmp_path: Path) -> None:
    folder = tmp_path / "vae"
    folder.mkdir()
    shutil.copyfile(FILES["text_encoder"], folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"vae: .* holds none of the expected .* is a language model such as"):
        ZImagePipeline.prepare(device="cpu", weight_path=folder / "model.safetensors")


def test_a_file_of_one_component_goes_before_one_of_several(notes: list[str], tmp_path: Path) -> None:
    file, vae = _all_in_one(tmp_path), tmp_path / "ae.safetensors"
    other = {name: values + 1 for name, values in _stored("vae").items()}
    save_file(other, vae)
    found = ZImagePipeline.prepare(device="cpu", weight_path=[file, vae]).sources
    assert (found.files["vae"], found.files["transformer"]) == ([vae], [file])
    assert notes == [f"vae: taken from {vae}, not from {file}, which holds one, too"]


def test_names_are_read_once_to_tell_where_a_file_goes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file, read = _all_in_one(tmp_path), list[Path]()

    def counted(files: list[Path]) -> Source:
        read.extend(files)
        return open_source(files)

    monkeypatch.setattr(locate, "open_source", counted)
    ZImagePipeline.prepare(device="cpu", weight_path=file)
    assert read == [file]


def test_two_files_of_several_components(tmp_path: Path) -> None:
    first = _all_in_one(tmp_path)
    second = tmp_path / "second.safetensors"
    shutil.copyfile(first, second)
    with pytest.raises(CheckpointError, match=r"everything.* and .*second.* hold a text_encoder each"):
        ZImagePipeline.prepare(device="cpu", weight_path=[first, second])


def test_another_model_in_one_file_is_not_taken_for_its_autoencoder(tmp_path: Path) -> None:
    state = _renamed(original_vae(_stored("vae")), "first_stage_model.")
    state["model.diffusion_model.double_blocks.0.img_mod.lin.weight"] = torch.zeros(2)
    save_file(state, tmp_path / "flux.safetensors")
    with pytest.raises(CheckpointError, match=r"transformer: .*flux.* holds none of the expected"):
        ZImagePipeline.prepare(device="cpu", weight_path=tmp_path / "flux.safetensors")


def test_a_part_that_is_not_whole(tmp_path: Path) -> None:
    """What is missing of a component in a file of several is said as of a file of its own."""
    file = _all_in_one(tmp_path)
    state = load_file(file)
    del state["first_stage_model.decoder.conv_out.bias"]
    save_file(state, file)
    with pytest.raises(CheckpointError, match=r"vae: [\s\S]*missing: first_stage_model\.decoder\.conv_out\.bias"):
        ZImagePipeline.prepare(device="cpu", weight_path=file)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_quantized_autoencoder(dtype: torch.dtype, tmp_path: Path) -> None:
    state = {name: values.to(dtype) if values.dim() > 1 else values for name, values in _stored("vae").items()}
    save_file(state, tmp_path / "ae.safetensors")
    with pytest.raises(CheckpointError, match="a quantized VAE is not supported; use the VAE of the base model"):
        ZImagePipeline.prepare(device="cpu", weight_path=tmp_path / "ae.safetensors")


def test_a_file_in_place_of_a_model(tmp_path: Path) -> None:
    file = _all_in_one(tmp_path)
    with pytest.raises(CheckpointError, match=r"is a file; give the directory .* and the file as its weights"):
        ZImagePipeline.prepare(str(file), device="cpu")


def test_owners() -> None:
    assert owner("model.diffusion_model.layers.0.attention.qkv.weight") == "transformer"
    assert owner("model.layers.0.self_attn.q_proj.weight") == "text_encoder"
    assert owner("text_encoders.qwen3_4b.transformer.model.norm.weight") == "text_encoder"
    assert owner("decoder.mid.block_1.conv1.weight") == owner("vae.encoder.conv_in.weight") == "vae"
    assert owner("encoder.block.0.layer.0.SelfAttention.q.weight") is None
    assert parts_in(_stored("transformer")) == {"transformer"}
    assert parts_in(original_transformer(_stored("transformer"))) == {"transformer"}
    assert parts_in(_stored("text_encoder")) == {"text_encoder"}
    assert parts_in(_stored("vae")) == parts_in(original_vae(_stored("vae"))) == {"vae"}


@pytest.mark.parametrize("container", ["scaled fp8", "GGUF"])
def test_a_picture_of_a_quantized_file(container: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Through the command line: the picture of the decoded weights, and another one than of the weights before."""
    state = original_transformer(state_of("transformer"))
    file, plain = tmp_path / f"z.{container[-4:].lower()}", tmp_path / "plain.safetensors"
    decoded = (
        write(file, state, Kind.Q4_0) if container == "GGUF" else write_quantized(FORMATS["ComfyUI fp8"], state, file)
    )
    save_file({name: values.contiguous() for name, values in decoded.items()}, plain)
    pictures: list[np.ndarray] = []
    for weights in ([], ["--weight-path", str(file)], ["--weight-path", str(plain)]):
        name = tmp_path / f"{len(pictures)}.png"
        asked = ["a red star", "--steps", "2", "--height", "128", "--width", "128", "--seed", "3", "--device", "cpu"]
        assert main(["generate", *asked, "--output", str(name), *weights]) == 0
        pictures.append(np.asarray(Image.open(name)))
    assert (pictures[1] == pictures[2]).all()
    assert (pictures[1] != pictures[0]).any()
    capsys.readouterr()
    assert main(["info", "--json", "--device", "cpu", "--check-weights", "--weight-path", str(file)]) == 0
    facts = json.loads(capsys.readouterr().out)
    transformer = next(part for part in facts["model"]["components"] if part["name"] == "transformer")
    assert sum(transformer["storage"].values()) == len(decoded) - 1  # without the norm that is never read
    assert "Q4_0" in transformer["storage"] or "F8_E4M3 scaled" in transformer["storage"]
    assert transformer["format"].startswith("GGUF, ") == (container == "GGUF")
    assert facts["weights"]["damaged"] == []


def test_a_component_names_its_files(tmp_path: Path) -> None:
    """MAX's object of weights holds the paths, whatever kind of files they lead to, and another component takes it."""
    file = tmp_path / "z.gguf"
    write(file, original_transformer(state_of("transformer")), Kind.Q8_0)
    pipeline = ZImagePipeline.from_pretrained(device="cpu", weight_path=file)
    made, given = pipeline.transformer, (pipeline.transformer.weights,)
    again = type(made)(made.config, made.encoding, [made.device], *given, session=made.session)
    assert again.plan().files == (file,)
    assert {*again.plan().recipes} == {*made.plan().recipes}


def test_binding_again_reads_nothing_again(tmp_path: Path) -> None:
    """Weights that are decoded alike are equal, so that a LoRA has only its own matrices read again."""
    state = original_transformer(state_of("transformer"))
    file = tmp_path / "z.safetensors"
    for form in ("ComfyUI nvfp4", "ComfyUI int8, rotated", "bitsandbytes nf4, nested", "ComfyUI mxfp8"):
        write_quantized(FORMATS[form], state, file, where="layers.0.")
        plans = [ZImagePipeline.prepare(device="cpu", weight_path=file).sources.plans["transformer"] for _ in range(2)]
        assert {*plans[0].recipes} == {*plans[1].recipes}
    loaded = load(plans[0], "float32", only=["layers.0.feed_forward.w13.weight"])
    assert bits(loaded["layers.0.feed_forward.w13.weight"])
