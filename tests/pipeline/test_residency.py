"""Components that take turns in memory: the same pictures to the bit, and weights that are gone when they have left."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from max.driver import Buffer
from safetensors.torch import load_file, save_file

from max_zimage import ZImagePipeline
from max_zimage.checkpoint.load import load
from max_zimage.compile import modules
from max_zimage.device.memory import NotEnoughMemoryError
from max_zimage.embedded import PATH
from max_zimage.pipeline import placing
from tests.paths import INSTALLED, ROOT
from tests.recording import RecordProperty
from tests.references.diffusers_runs import Pair
from tests.serving.test_step_scheduler import Worker, alone, assert_same

RED, BLUE = "a red star on a blue background", "a blue circle"
CALL: dict[str, Any] = {"seed": 3, "num_inference_steps": 2, "height": 128, "width": 128, "guidance_scale": 2.0}


def draw(pipeline: ZImagePipeline, prompt: str = RED, **given: Any) -> npt.NDArray[np.uint8]:
    return np.asarray(pipeline(prompt, output_type="np", **CALL | given))


@pytest.fixture(scope="module")
def turns() -> ZImagePipeline:
    return ZImagePipeline.from_pretrained(device="cpu", dtype="float32", placement="sequential")


def here(pipeline: ZImagePipeline) -> tuple[bool, bool]:
    return pipeline.text_encoder.is_here, pipeline.transformer.is_here


def test_pictures_are_the_same_to_the_bit_and_nothing_is_compiled_for_them(
    turns: ZImagePipeline, embedded: Pair
) -> None:
    assert embedded.ours.residency.plan.is_plain
    assert embedded.ours.residency.ledger == []
    before = modules.counts["misses"], modules.counts["hits"]
    for prompt in (RED, BLUE, RED):
        np.testing.assert_array_equal(draw(turns, prompt), draw(embedded.ours, prompt))
    assert (modules.counts["misses"], modules.counts["hits"]) == before


def test_one_of_the_two_large_components_is_in_memory_at_a_time(
    turns: ZImagePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told by the ledger, whose bytes are those of the weights, and by what becomes of the arrays."""
    turns.transformer.come()
    begun, kept = len(turns.residency.ledger), list[Any]()

    def tracked(*arguments: Any, **more: Any) -> dict[str, Buffer]:
        arrays = {name: data.to_numpy().copy() for name, data in load(*arguments, **more).items()}
        kept.extend(weakref.ref(each) for each in arrays.values())
        return {name: Buffer.from_numpy(each) for name, each in arrays.items()}

    with monkeypatch.context() as patched:
        patched.setattr("max_zimage.components.base.load", tracked)
        turns.text_encoder.come()
    assert here(turns) == (True, False)
    assert len(kept) > 20
    assert all(each() is not None for each in kept)
    draw(turns, "a prompt that no other test has")
    assert here(turns) == (False, True)
    gc.collect()
    assert [each() for each in kept] == [None] * len(kept)
    assert turns.text_encoder.kept_weights == {}
    nbytes = turns.sources.nbytes
    most = nbytes["vae"] + max(nbytes["text_encoder"], nbytes["transformer"])
    found = turns.residency.ledger[begun:]
    assert max(each.nbytes for each in found) <= most < sum(nbytes.values())
    leaves = [(each.component, each.is_here) for each in found if each.component != "vae"]
    assert leaves[-2:] == [("text_encoder", False), ("transformer", True)]


def test_prompts_that_are_known_do_not_bring_the_text_encoder_back(turns: ZImagePipeline) -> None:
    draw(turns, BLUE)
    events = len(turns.residency.ledger)
    draw(turns, BLUE, seed=9)
    draw(turns, RED)
    assert here(turns) == (False, True)
    assert len(turns.residency.ledger) == events


def test_what_a_callback_draws_takes_its_turn(turns: ZImagePipeline, embedded: Pair) -> None:
    """A new prompt in the middle of the steps sends the transformer away; it comes back for those that are left."""

    def drawn(pipeline: ZImagePipeline, name: str) -> list[npt.NDArray[np.uint8]]:
        found: list[Any] = []

        def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if step == 0:
                found.append(draw(pipe, f"{name} within"))
            return tensors

        found.append(draw(pipeline, name, callback_on_step_end=callback))
        return found

    for ours, expected in zip(drawn(turns, "a lake"), drawn(embedded.ours, "a lake"), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_images_hidden_layers_and_graphs_that_come_later(turns: ZImagePipeline, embedded: Pair) -> None:
    image = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    given: tuple[dict[str, Any], ...] = (
        {"image": image, "strength": 0.6},
        {"hidden_layer": -3},
        {"guidance_scale": 0.0, "nag_scale": 3.0, "negative_prompt": "dark"},
        {"step_cache": "taylorseer:cache_interval=2,warmup_steps=2", "num_inference_steps": 6},
    )
    for number, each in enumerate(given):
        np.testing.assert_array_equal(draw(turns, f"{number}", **each), draw(embedded.ours, f"{number}", **each))
    assert here(turns) == (False, True)


def test_first_block_caching_is_compiled_while_the_transformer_is_away(embedded: Pair) -> None:
    """At the load, when no weight is in memory; its graphs are bound when the transformer comes."""
    asked: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 2.0}
    words = "first_block:threshold=0.1"
    away = ZImagePipeline.from_pretrained(device="cpu", dtype="float32", placement="sequential", step_cache=words)
    assert here(away) == (False, False)
    np.testing.assert_array_equal(draw(away, **asked), draw(embedded.ours, step_cache=words, **asked))


def test_a_graph_that_was_not_compiled_is_forgotten(
    turns: ZImagePipeline, embedded: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where Ctrl-C ends it: neither the weights' return nor another attempt finds half a graph."""
    transformer = turns.transformer
    transformer.leave()
    known = [each.name for each in transformer._graphs]
    for error in (RuntimeError("no"), KeyboardInterrupt()):

        def fails(graphs: Any, error: BaseException = error) -> None:
            raise error

        with monkeypatch.context() as patched:
            patched.setattr("max_zimage.components.base.wait_for", fails)
            with pytest.raises(type(error)):
                transformer.first_block_graphs("noise_refiner")
        assert [each.name for each in transformer._graphs] == known
    np.testing.assert_array_equal(draw(turns), draw(embedded.ours))


def test_weights_that_cannot_be_read_any_more_are_asked_for_again(
    turns: ZImagePipeline, embedded: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(turns, RED)

    def lost(*_: Any, **__: Any) -> Any:
        raise OSError("the file is gone")

    with monkeypatch.context() as patched:
        patched.setattr("max_zimage.components.base.load", lost)
        with pytest.raises(OSError, match="the file is gone"):
            draw(turns, "while the file is gone")
    assert here(turns) == (False, False)
    np.testing.assert_array_equal(draw(turns, "while the file is gone"), draw(embedded.ours, "while the file is gone"))


def test_a_decode_that_does_not_fit_beside_the_transformer_has_it_leave(
    turns: ZImagePipeline, embedded: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbytes = turns.sources.nbytes
    draw(turns, RED)  # the transformer and the autoencoder are here
    needs = placing.needs_of(turns.sources, placing.Size(height=512, width=512, branches=2))
    assert needs["vae"].work > nbytes["transformer"] + needs["transformer"].work
    there = nbytes["transformer"] + nbytes["vae"]
    alone = nbytes["vae"] + needs["vae"].work
    monkeypatch.setattr("max_zimage.pipeline.residency.available_memory", lambda: alone - there)
    found = draw(turns, RED, height=512, width=512)
    assert here(turns) == (False, False)
    np.testing.assert_array_equal(found, draw(embedded.ours, RED, height=512, width=512))
    monkeypatch.setattr("max_zimage.pipeline.residency.available_memory", lambda: alone - nbytes["vae"] - 1)
    with pytest.raises(NotEnoughMemoryError, match=r"the model does not fit \(placement sequential\)"):
        draw(turns, RED, height=512, width=512)
    monkeypatch.undo()
    draw(turns, RED)
    assert here(turns) == (False, True)


def test_a_server_reads_the_text_encoder_for_new_prompts_alone(turns: ZImagePipeline, embedded: Pair) -> None:
    worker = Worker(turns)
    asked = [worker.ask("a red square in a server"), worker.ask("a red square in a server", seed=6)]
    asked += [worker.ask("a green ring in a server")]
    begun = len(turns.residency.ledger)
    worker.finish()
    expected = [("a red square in a server", 5), ("a red square in a server", 6), ("a green ring in a server", 5)]
    for each, (prompt, seed) in zip(asked, expected, strict=True):
        assert_same(worker.pictures(each), alone(embedded.ours, prompt, seed))
    events = [each.component for each in turns.residency.ledger[begun:] if each.is_here and each.component != "vae"]
    # All three share a batch, and so a turn; a prompt that comes again costs none.
    assert events == ["text_encoder", "transformer"]
    again = worker.ask("a green ring in a server", seed=8)
    worker.finish()
    assert_same(worker.pictures(again), alone(embedded.ours, "a green ring in a server", 8))
    assert len(turns.residency.ledger) == begun + 4


@pytest.mark.slow
def test_quantized_weights_stay_quantized() -> None:
    words = "text_encoder=q4,transformer=int8"
    kept = ZImagePipeline.from_pretrained(device="cpu", quantize=words)
    expected = draw(kept)
    away = ZImagePipeline.from_pretrained(device="cpu", quantize=words, placement="sequential")
    np.testing.assert_array_equal(draw(away), expected)
    assert sum(each.num_elements * each.dtype.size_in_bytes for each in away.transformer.kept_weights.values()) == sum(
        each.num_elements * each.dtype.size_in_bytes for each in kept.transformer.kept_weights.values()
    )


_MEASURE = """
import json, sys
from pathlib import Path
from max.driver import load_devices
from max_zimage.pipeline.encoder import ZImageTextEncoder
from max_zimage.components import ZImageTextEncoderModel
from max.graph.weights import SafetensorWeights

def anonymous():
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) * 1024

checked = ZImageTextEncoder.prepare(sys.argv[1], device="cpu", dtype="float32")
before = anonymous()
what = checked.config, "float32", checked.devices, SafetensorWeights(list(checked.plan.files))
component = ZImageTextEncoderModel(*what, plan=checked.plan)
there = anonymous()
component.leave()
print(json.dumps([there - before, anonymous() - before, checked.plan.nbytes("float32")]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads memory of a process from /proc")
def test_the_memory_of_a_process_falls_by_the_text_encoder(tmp_path: Path, record_property: RecordProperty) -> None:
    """The embedded model's text encoder with 200 MB more of vocabulary, in blocks that the C library would keep."""
    directory = large_vocabulary(tmp_path / "large")
    command = [sys.executable, "-c", _MEASURE, str(directory)]
    environment = {**os.environ, "PYTHONPATH": INSTALLED}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    there, gone, nbytes = json.loads(done.stdout.splitlines()[-1])
    record_property("MB there", there / 1e6)
    record_property("MB left behind", gone / 1e6)
    assert there > 0.95 * nbytes > 190e6
    assert gone < 0.05 * nbytes


def large_vocabulary(directory: Path) -> Path:
    """The embedded model with an embedding of so many rows, in bfloat16, which is widened when it is loaded."""
    shutil.copytree(PATH, directory)
    folder = directory / "text_encoder"
    config = json.loads((folder / "config.json").read_text())
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    name = next(each for each in tensors if each.endswith("embed_tokens.weight"))
    width = tensors[name].shape[1]
    rows = 200_000_000 // 4 // width
    tensors[name] = torch.cat([tensors[name], torch.zeros(rows - len(tensors[name]), width, dtype=torch.bfloat16)])
    config["vocab_size"] = rows
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, file)
    return directory
