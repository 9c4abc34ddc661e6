"""Compiling for targets that need not be there, at the real widths with few layers, since layers repeat kernels."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from max.driver import Device, DeviceSpec
from max.pipelines import PipelineArgs
from max.pipelines.lib.config import PipelineConfig
from max.pipelines.modeling.types import PipelineTask

from max_zimage.checkpoint.config import model_specs, text_encoder_spec, transformer_spec, vae_spec
from max_zimage.checkpoint.locate import COMPONENTS, CONFIG_FILES, read_config
from max_zimage.cli.main import main
from max_zimage.compile.ahead_of_time import (
    FULL_MODEL,
    TARGETS,
    check_graphs,
    check_target,
    compile_target,
    default_dtype,
    with_layers,
)
from max_zimage.compile.cubins import symbols_in
from max_zimage.compile.jobs import _report
from max_zimage.compile.registry import AHEAD, MESHED
from max_zimage.device.dtypes import model_dtype
from max_zimage.embedded import PATH as EMBEDDED
from tests.checkpoint.test_config import TEXT_ENCODER, TRANSFORMER, VAE
from tests.paths import ROOT


def test_the_full_model_is_the_published_one() -> None:
    assert FULL_MODEL.text_encoder == text_encoder_spec(TEXT_ENCODER)
    assert FULL_MODEL.transformer == transformer_spec(TRANSFORMER)
    assert FULL_MODEL.vae == vae_spec(VAE)


def test_fewer_layers_of_the_same_widths() -> None:
    few = with_layers(FULL_MODEL, 2)
    assert few.text_encoder.layers_used(-2) == 2
    assert (few.transformer.num_layers, few.transformer.num_refiner_layers) == (2, 2)
    assert few.transformer.dim == FULL_MODEL.transformer.dim
    assert few.diffusion_gemma is not None
    assert few.diffusion_gemma.layer_types == ("sliding_attention", "full_attention")
    assert few.diffusion_gemma.num_experts == 128


def test_targets_and_graphs_are_checked() -> None:
    for target in TARGETS:
        assert check_target(target) == target
    with pytest.raises(
        ValueError, match=r"target must be one of cpu, cuda:sm_90a, cuda:sm_100a, hip:gfx942, got 'cuda:sm_80'"
    ):
        check_target("cuda:sm_80")
    assert check_graphs(()) == AHEAD
    assert check_graphs(("denoise", "pack")) == ("pack", "denoise")
    with pytest.raises(ValueError, match=r"graphs must be among pack, .*, encode, .*, got 'unet'"):
        check_graphs(("unet", "pack"))
    assert [default_dtype(target) for target in TARGETS] == ["float32", "bfloat16", "bfloat16", "bfloat16"]


def test_the_dtype_of_a_gpu() -> None:
    gpu = cast(Device, SimpleNamespace(is_host=False))
    assert [model_dtype(name, gpu) for name in ("auto", "bfloat16", "float32")] == ["bfloat16", "bfloat16", "float32"]


def test_served_on_a_gpu_no_dtype_is_named_but_by_the_user() -> None:
    """Then "auto" decides, as in Python: MAX does not put the architecture's default in its place."""
    served = {
        "model_path": str(EMBEDDED),
        "device_specs": [DeviceSpec.accelerator()],
        "custom_architectures": ["max_zimage"],
        "task": PipelineTask.PIXEL_GENERATION,
    }
    for named in ({}, {"quantization_encoding": "float32"}):
        models = PipelineConfig.from_args(PipelineArgs.from_flat_kwargs(**served, **named)).models
        assert {models[name].quantization_encoding for name in COMPONENTS} == {named.get("quantization_encoding")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "cuda:sm_80"], "target must be one of cpu, cuda:sm_90a, cuda:sm_100a, hip:gfx942, got"),
        (["--target", "cpu", "--graphs", "unet"], "graphs must be among"),
        (["--target", "cpu", "--model", "nothing"], "no model at nothing"),
        (["--target", "cpu", "--keep"], "keep is for GPUs, got target 'cpu'"),
        (["--target", "cpu", "--list-kernels"], "kernels are listed for GPUs, got target 'cpu'"),
        (["--target", "hip:gfx942", "--list-kernels", "--keep"], "not allowed with argument"),
        (["--target", "cuda:sm_90a", "--symbols"], "symbols are those of a list of kernels; ask for that too, with"),
        (["--target", "hip:gfx942", "--list-kernels", "--symbols"], "symbols are read from CUDA's machine code, got"),
        ([], "the following arguments are required: --target"),
    ],
)
def test_bad_arguments(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    try:
        code = main(["compile", *arguments])
    except SystemExit as exit:
        code = int(exit.code or 0)
    printed = capsys.readouterr()
    assert (code, printed.out) == (2, "")
    assert printed.err.startswith("max-zimage: error: ")
    assert message in printed.err


def test_the_command_reports_each_graph(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    small = ["compile", "--target", "cpu", "--model", "tiny-zimage", "--graphs", "prepare_scheduler", "pack"]
    assert main([*small, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["target"], said["dtype"]) == ("cpu", "float32")
    assert [graph["graph"] for graph in said["graphs"]] == ["pack", "prepare_scheduler"]
    for graph in said["graphs"]:
        assert graph["seconds"] > 0
        assert graph["cpu_seconds"] > 0
        assert graph["peak_bytes"] > 50e6
        assert graph["error"] is None
        assert graph["log"] is None

    reports = [_report(graph["graph"], json.dumps(graph), 0, Path()) for graph in said["graphs"]]
    monkeypatch.setattr("max_zimage.cli.compile.compile_target", lambda *_, **__: reports)  # not once more
    assert main(small) == 0
    printed = capsys.readouterr().out
    assert "tiny-zimage in float32 for cpu" in printed
    for report in reports:
        assert re.search(rf"{report.graph} +{report.seconds:.1f} +{report.cpu_seconds:.0f} ", printed)


def test_a_graph_that_cannot_be_compiled(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("max_zimage.compile.jobs.tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("max_zimage.cli.compile.default_dtype", lambda target: "float7")
    monkeypatch.setattr("max_zimage.cli.compile.check_attention", lambda *_: None)  # which would refuse that
    assert main(["compile", "--target", "cpu", "--model", "tiny-zimage", "--graphs", "modulation", "--json"]) == 1
    (graph,) = json.loads(capsys.readouterr().out)["graphs"]
    assert graph["seconds"] is None
    assert "float7" in graph["error"]
    assert "Traceback" in Path(graph["log"]).read_text()
    assert main(["compile", "--target", "cpu", "--model", "tiny-zimage", "--graphs", "modulation"]) == 1
    printed = capsys.readouterr().out
    assert "failed" in printed
    assert "everything it wrote: " in printed


@pytest.mark.parametrize(
    ("said", "ends"), [("", "status -6"), ("note\nLLVM ERROR: no\n\n", "status -6: LLVM ERROR: no")]
)
def test_a_compiler_that_ends_its_process(said: str, ends: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(said)
    report = _report("pack", "", -6, log)
    assert report.error is not None
    assert report.error.endswith(ends)
    assert (report.seconds, report.log) == (None, log)


@pytest.mark.targets
@pytest.mark.slow
@pytest.mark.parametrize("graph", AHEAD)
def test_every_graph_compiles_for_sm_90a(graph: str) -> None:
    """At the real widths; two layers, so that a block's input is once an embedding and once another block's output.

    All of them take half an hour. The lists of their launches, which the compiler makes from the same graph in seconds,
    stand for them in CI, and the test below for what the lists do not see: machine code.
    """
    (report,) = compile_target(with_layers(FULL_MODEL, 2), "cuda:sm_90a", "bfloat16", [graph])
    assert report.error is None, f"{report.error}; see {report.log}"
    print(f"{graph}: {report.seconds:.1f} s, {report.cpu_seconds:.0f} CPU s, {report.peak_bytes / 2**30:.1f} GiB")


@pytest.mark.targets
def test_the_projects_ops_and_products_of_cublas_as_machine_code(tmp_path: Path) -> None:
    """Ops keep what they work on in registers; products are none of MAX's own."""
    file = tmp_path / "ops.mef"
    command = [sys.executable, "-m", "tests.references.own_kernels", str(file)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    compiled = file.read_bytes()
    assert b"libcublas.so" in compiled
    assert not [own for own in (b"sm90_matmul", b"gemv", b"multistage") if own in compiled]
    symbols = symbols_in(compiled)
    assert [symbol for symbol in symbols if symbol.stack > 0] == []
    ops = [symbol for symbol in symbols if symbol.name.startswith("mojo_pkg")]
    assert len(ops) >= 8  # four of a block, a widened weight, moments, their use, the wide head's softmax
    assert max(symbol.registers for symbol in ops) <= 64


@pytest.mark.targets
@pytest.mark.slow
def test_the_embedded_model_compiles_for_sm_90a() -> None:
    specs = model_specs(**{name: read_config(EMBEDDED, name) for name in CONFIG_FILES})
    for report in compile_target(specs, "cuda:sm_90a", "bfloat16", ["denoise", "decode"]):
        assert report.error is None, f"{report.error}; see {report.log}"


KEYS = """
import json, os, sys
from dataclasses import replace
from types import SimpleNamespace
from max.driver import Accelerator, set_virtual_device_api, set_virtual_device_count, set_virtual_device_target_arch
set_virtual_device_api("cuda")
set_virtual_device_target_arch("sm_90a")
set_virtual_device_count(2)
from max.graph import DeviceRef
from max_zimage import FirstBlockCache, TaylorSeer, ZImagePipeline
from max_zimage.compile import compiler, registry
from max_zimage.device import libraries
from max_zimage.compile.artifacts import artifact_key
from max_zimage.compile.inner_loops import loop_of
from max_zimage.compile.registry import AHEAD, made, spec_of
from max_zimage.components import ZImageMeshedTransformer, ZImageStreamedTransformer
from max_zimage.compile.ahead_of_time import DIFFUSION_GEMMA
from max_zimage.diffusion_gemma.config_file import DiffusionGemmaFile
from max_zimage.diffusion_gemma.model_graphs import CompiledDiffusionGemma

pipelines = {}
def not_compiled(definitions):
    pipelines.update({each.name: each.key for each in definitions})
    models = {each.name: None for each in definitions}
    return SimpleNamespace(models=models, again=lambda definition: not_compiled([definition]))
compiler.module_of = not_compiled
libraries.loaded = lambda _: True  # nothing runs here
pipeline = ZImagePipeline.from_pretrained(device="gpu", dtype=sys.argv[1])
for cache in (FirstBlockCache(), TaylorSeer()):
    pipeline.use_step_cache(cache)
pipeline.build_prepare_scheduler()
pipeline.build_scheduler_step()
transformer = pipeline.transformer
small = [transformer.guided_update, transformer.keep_unmasked, transformer.positions, transformer.nag]
compiler.compile_together([pipeline.vae.encoder, *small])
streamed = ZImageStreamedTransformer(
    transformer.config, transformer.encoding, transformer.devices, transformer.weights,
    session=transformer.session, plan=transformer.plan(), is_away=True,
)
compiler.compile_together(list(streamed.step.graphs))
for layer in ("text_encoder_layer", "text_encoder_cached_layer"):
    pipeline.text_encoder.layers._graphs(6, layer)  # the embedding, four layers and the norm
which = transformer.config, transformer.encoding, [Accelerator(0), Accelerator(1)], transformer.weights
meshed = [ZImageMeshedTransformer(*which, plan=transformer.plan(), groups=1, is_padded=x) for x in (False, True)]
compiler.compile_together([meshed[0].model, meshed[1].model, meshed[0].first_block_graphs("noise_refiner")[0]])
compiler.compile_together([pipeline.own_language.load()._head])
vae = pipeline.vae
compiler.compile_together([vae.decode_tile, vae.encode_tile, vae.start_from_moments])
exact = ("exact_middle", "exact_upsample", "exact_first", "exact_second", "exact_pixels")
compiler.compile_together([vae.graph(name, vae.provide()) for name in exact])
file = DiffusionGemmaFile(
    spec=DIFFUSION_GEMMA, image_token_id=None, boi_token_id=None, eoi_token_id=None, has_vision=False
)
CompiledDiffusionGemma(file, None, device=Accelerator(), dtype=sys.argv[1]).compile()
device, specs = Accelerator(), replace(pipeline.sources.specs, diffusion_gemma=DIFFUSION_GEMMA)
workers = {}
for name in pipelines:
    module, types = made(name, specs, sys.argv[1], DeviceRef.from_device(device))
    of = name, registry.GRAPHS[name].key_of(spec_of(name, specs)), module, types, device
    workers[name] = artifact_key(*of, loop=loop_of(module, device))
print(json.dumps([pipelines, workers]), flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_pipeline_finds_what_is_kept(dtype: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KEYS, dtype], env=dict(os.environ), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    pipelines, workers = json.loads(done.stdout.splitlines()[-1])
    assert set(pipelines) == {*AHEAD, *MESHED}, "what components ask for, KEYS included, is not what is compiled ahead"
    assert workers == pipelines


def test_a_folder_that_cannot_be_written_is_said_before_compiling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MAX_ZIMAGE_CACHE", str(tmp_path / "file"))
    assert main(["compile", "--target", "cuda:sm_90a", "--keep"]) == 2
    assert f"artifacts go to {tmp_path / 'file'}, which fails" in capsys.readouterr().err


@pytest.mark.targets
def test_artifacts_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MAX_ZIMAGE_CACHE", str(tmp_path / "kept"))
    command = ["compile", "--target", "cuda:sm_90a", "--graphs", "pack", "--keep"]
    assert main([*command, "--json"]) == 0
    (graph,) = json.loads(capsys.readouterr().out)["graphs"]
    (file,) = (tmp_path / "kept").glob("pack-*.mef")
    assert (graph["artifact"], graph["error"]) == (str(file), None)
    assert main(command) == 0
    assert "kept in" in capsys.readouterr().out
