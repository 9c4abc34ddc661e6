"""Whether a server's limits fit into memory, said before anything is loaded."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from safetensors.torch import load_file
from typing_extensions import override

from max_zimage import ZImagePipeline
from max_zimage.cli import generate as cli_generate
from max_zimage.cli.main import main
from max_zimage.compile.ahead_of_time import FULL_MODEL
from max_zimage.device.memory import NotEnoughMemoryError
from max_zimage.embedded import TEXT_PATH
from max_zimage.enhancer.opening import open_enhancer
from max_zimage.images.tiles import Tiling, TilingKind
from max_zimage.pipeline import estimate, placing
from max_zimage.pipeline.enhancing import own_of_checked
from max_zimage.pipeline.estimate import activation_bytes, check_picture, decode_bytes, map_bytes, pictures_at_once
from max_zimage.pipeline.loading import CheckedModel
from max_zimage.serving import capacity
from max_zimage.serving.capacity import check_capacity, with_capacity
from max_zimage.serving.settings import ServerLimits, ServerSettings
from tests.references.chat_stub import Silk

if TYPE_CHECKING:
    from tests.references.diffusers_runs import Pair

SETTINGS = ServerSettings(name="x", limits=ServerLimits(pixels=1024 * 1024, images=4))


@pytest.fixture(scope="module")
def prepared() -> CheckedModel:
    return ZImagePipeline.prepare(device="cpu")


def test_what_fits(prepared: CheckedModel) -> None:
    needed = check_capacity(SETTINGS, prepared, 2**40)
    assert needed > sum(prepared.sources.nbytes.values())
    assert check_capacity(SETTINGS, prepared, needed) == needed
    assert check_capacity(replace(SETTINGS, batch_pictures=4), prepared, 2**40) == needed
    more = replace(SETTINGS, batch_pictures=16)
    assert check_capacity(more, prepared, 2**40) > needed


def test_what_does_not_fit_is_told_what_would(prepared: CheckedModel) -> None:
    needed = check_capacity(SETTINGS, prepared, 2**40)
    with pytest.raises(NotEnoughMemoryError, match=r"4 pictures of 1048576 pixels .* --max-pixels 589824 would fit"):
        check_capacity(SETTINGS, prepared, needed - 1)
    alone = check_capacity(replace(SETTINGS, limits=ServerLimits(pixels=16384, images=4)), prepared, 2**40) - 1
    with pytest.raises(NotEnoughMemoryError, match="--max-images 1 --batch-pictures 1 would fit"):
        check_capacity(SETTINGS, prepared, alone)
    with pytest.raises(NotEnoughMemoryError, match="not even one small picture fits beside the weights"):
        check_capacity(SETTINGS, prepared, 2**20)


class Beside(Silk):
    """An enhancer that will be loaded on a CPU."""

    nbytes = 0

    @override
    def weights(self) -> dict[str, int]:
        return {"cpu": self.nbytes}


def test_an_enhancer_is_counted_where_it_runs(prepared: CheckedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = check_capacity(SETTINGS, prepared, 2**40)
    free = needed + 2**20
    for module in (capacity, placing):
        monkeypatch.setattr(module, "available_memory", lambda: free)
    beside = Beside()
    beside.nbytes = 2**20
    assert with_capacity(SETTINGS, prepared, beside).plan == with_capacity(SETTINGS, prepared).plan
    beside.nbytes += 1
    refusal = r"--max-pixels 589824 would fit; 1 MiB on cpu are kept for the enhancer silk, which an address would not"
    with pytest.raises(NotEnoughMemoryError, match=refusal):
        with_capacity(SETTINGS, prepared, beside)
    beside.nbytes = free + 1
    with pytest.raises(NotEnoughMemoryError, match=r"the enhancer silk has .* of weights, .* are there on cpu; name a"):
        with_capacity(SETTINGS, prepared, beside)
    free = needed
    with pytest.raises(NotEnoughMemoryError, match="are kept for the enhancer silk"):
        beside.nbytes = 1
        with_capacity(SETTINGS, prepared, beside)
    assert with_capacity(SETTINGS, prepared, Silk()).plan == with_capacity(SETTINGS, prepared).plan


def test_what_enhancers_take(prepared: CheckedModel) -> None:
    text = open_enhancer("embedded", is_embedded=True).weights()
    numbers = sum(each.numel() for each in load_file(TEXT_PATH / "model.safetensors").values())
    assert [*text] == ["cpu"]
    assert 0.99 < text["cpu"] / (4 * numbers) <= 1  # a few of its tensors are not loaded
    own = open_enhancer("encoder", is_embedded=True, own=own_of_checked(prepared)).weights()
    assert own["cpu"] > prepared.sources.nbytes["text_encoder"]
    assert open_enhancer("http://host/v1", is_embedded=True).weights() == {}


def test_the_command_says_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(capacity, "available_memory", lambda: 2**27)
    assert main(["serve", "--port", "0", "--device", "cpu"]) == 2
    assert "--max-pixels" in capsys.readouterr().err


def test_several_pictures_take_more_in_the_steps_and_are_decoded_a_few_at_a_time() -> None:
    def needed(pictures: int) -> int:
        return activation_bytes(FULL_MODEL, height=1024, width=1024, branches=2, dtype="bfloat16", pictures=pictures)

    assert needed(1) < needed(8) <= 8 * needed(1)
    assert [pictures_at_once(8, side, side) for side in (128, 1024, 2048, 4096)] == [8, 4, 1, 1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--port", "99999"], "--port 99999"),
        (["--port", "0", "--api-key-file", "/nowhere"], "--api-key-file /nowhere cannot be read"),
        (["--port", "0", "--api-key-file", "/dev/null"], "is empty; put the key into it"),
        (["--port", "0", "--device", "gpu:7"], "gpu:7"),
        (["nothing/there/at/all"], "nothing/there/at/all"),
        (["--max-steps", "0"], "must be at least 1, got 0"),
        (["--max-seconds", "-1"], "must be above 0, got -1"),
        (["--read-timeout", "soon"], "must be a number of seconds, got 'soon'"),
        (["--write-timeout", "nan"], "must be above 0, got nan"),
        (["--max-connections", "0"], "must be at least 1, got 0"),
        (
            ["--port", "0", "--max-connections", "9999999999"],
            "--max-connections 9999999999 needs 10000000511 open files",
        ),
        (["--allow-host", "http://x"], "must be one name or address without scheme and port, got 'http://x'"),
        (["--cors-origin", "*"], "must be SCHEME://HOST or SCHEME://HOST:PORT, got '*'"),
    ],
)
def test_bad_flags(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(["serve", *flags])
    except SystemExit as exit:
        code = int(exit.code or 0)
    assert code == 2
    error = capsys.readouterr().err
    assert error.startswith("max-zimage: error: ")
    assert message in error


def test_a_picture_that_does_not_fit_is_refused_before_loading(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(estimate, "available_memory", lambda: 4 * 2**30)
    monkeypatch.setattr(cli_generate, "_load", lambda prepared: pytest.fail("loaded"))
    assert main(["generate", "x", "--device", "cpu", "--height", "8192", "--width", "8192"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("max-zimage: error: a picture of 8192x8192 pixels needs about ")
    assert "with the weights, 4.0 GiB are available on cpu:0; 3584x3584 pixels would fit" in said


def test_tiles_take_the_memory_of_a_tile() -> None:
    def needed(kind: TilingKind, side: int, size: int = 512) -> int:
        tiling = Tiling(kind, size, 64)
        return decode_bytes(FULL_MODEL.vae, pictures=3, height=side, width=side, dtype="bfloat16", tiling=tiling)

    assert needed("off", 512) == needed("blend", 512) == needed("exact", 512)
    assert needed("blend", 1024) == needed("blend", 8192) == needed("off", 512) / 3
    assert needed("blend", 4096) < needed("exact", 4096) < needed("off", 4096) / 10
    assert needed("exact", 1024, 256) < needed("exact", 1024, 512)
    assert map_bytes(FULL_MODEL.vae, 4096, 4096, "bfloat16", Tiling("exact")) == 4096 * 4096 * 128 * 2
    assert map_bytes(FULL_MODEL.vae, 512, 512, "bfloat16", Tiling("exact")) == 0


def test_a_refusal_names_tiles_where_they_would_do(prepared: CheckedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    size: dict[str, Any] = {"height": 2048, "width": 2048, "branches": 1, "pictures": 1}
    step = activation_bytes(prepared.sources.specs, **size, dtype="float32", tiling=Tiling("blend"))
    monkeypatch.setattr(estimate, "available_memory", lambda: step)
    with pytest.raises(NotEnoughMemoryError, match=r'tiles would fit \(vae_tiling="blend", --tiled-vae\) or \d+x'):
        check_picture(prepared.sources, prepared.devices[0], **size)
    check_picture(prepared.sources, prepared.devices[0], **size, tiling=Tiling("blend"))
    monkeypatch.setattr(estimate, "available_memory", lambda: step - 1)
    with pytest.raises(NotEnoughMemoryError) as caught:
        check_picture(prepared.sources, prepared.devices[0], **size)
    assert "vae_tiling" not in str(caught.value)


def test_the_host_must_hold_what_exact_tiles_keep(prepared: CheckedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    size: dict[str, Any] = {"height": 4096, "width": 4096, "branches": 1, "pictures": 1}
    accelerator = cast(Any, SimpleNamespace(is_host=False, stats={"total_memory": 2**40}, label="gpu", id=0))
    monkeypatch.setattr(estimate, "available_memory", lambda: 2**30)
    check_picture(prepared.sources, accelerator, **size, tiling=Tiling("exact"))
    monkeypatch.setattr(estimate, "available_memory", lambda: 2**30 - 1)
    with pytest.raises(NotEnoughMemoryError, match=r"exact tiles keep about 1\.0 GiB of a picture .* blend"):
        check_picture(prepared.sources, accelerator, **size, tiling=Tiling("exact"))
    check_picture(prepared.sources, accelerator, **size, tiling=Tiling("blend"))


def test_info_tells_what_decoding_a_large_picture_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json", "--device", "cpu"]) == 0
    large = json.loads(capsys.readouterr().out)["memory"]["large_decode"]
    assert (large["height"], large["width"]) == (4096, 4096)
    assert large["off"] > 10 * large["blend"] > 0
    assert large["off"] > large["exact"] + large["exact_on_host"] > large["blend"]
    assert main(["info", "--device", "cpu"]) == 0
    assert "decoding 4096x4096 pixels takes about " in capsys.readouterr().out


def test_what_is_asked_of_python_is_compared_with_what_is_free(embedded: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "available_memory", lambda: 200 * 2**20)
    pipeline = embedded.ours
    with pytest.raises(NotEnoughMemoryError, match=r"2048x2048 .* beside the weights, 200 MiB .* pixels would fit"):
        pipeline("x", height=2048, width=2048)
    with pytest.raises(NotEnoughMemoryError, match=r"32 pictures of 512x512 pixels need .*; \d+ at a time would fit"):
        pipeline("x", height=512, width=512, num_images_per_prompt=32)
    assert pipeline("x", height=64, width=64, num_inference_steps=1)[0].size == (64, 64)
