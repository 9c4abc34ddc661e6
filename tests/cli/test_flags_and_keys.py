"""Whatever a flag says a configuration file can say, or there is a reason why not."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from max_zimage import ZImagePipeline
from max_zimage.cli.config import all_keys
from max_zimage.cli.configuring import STARTS
from max_zimage.cli.given import command_of
from max_zimage.cli.main import _parser
from max_zimage.images.errors import ImageFileError
from max_zimage.images.texts import embedded_text
from max_zimage.pipeline.carried import Carried
from max_zimage.pipeline.results import Pictures
from max_zimage.request.fields import ROWS
from tests.cli.test_config import SMALL, Run, served
from tests.cli.test_config import config as config
from tests.cli.test_config import loaded as loaded
from tests.cli.test_config import run as run
from tests.references.diffusers_runs import Pair

COMMANDS = ("generate", "batch", "encode", "serve", "info", "profile", "compile")
"""Those that read the configuration."""

ONE_PICTURE = "what one picture shows or begins with"
ONE_CALL = "what one call of a command does, or where it writes to"
SPELLING = "another spelling of a flag that has a key"
WITHOUT_KEY: Mapping[str, str] = {
    **dict.fromkeys(
        ("prompt", "source", "embeddings", "count", "image", "mask", "soft_mask", "composite", "outpaint", "resize",
         "latents_in", "denoising_start", "denoising_end"), ONE_PICTURE
    ),
    **dict.fromkeys(
        ("output", "latents_out", "save_embeddings", "encoder_only", "json", "quiet", "debug", "help", "check_weights",
         "memory", "templates", "target", "graphs", "keep", "list_kernels", "symbols", "batch", "component", "tokens",
          "layers", "repeats", "warmup", "no_sync", "trace", "show_info", "tests", "sweep", "attention", "file",
          "format", "batch_pictures", "id_column", "ignore", "max_errors", "retry_failed", "shard_rows", "workers",
          "ray", "device_count"), ONE_CALL
    ),
    **dict.fromkeys(("model_path", "quantization", "cache_size"), SPELLING),
    "lora": "[lora] paths and scales say it",
    **dict.fromkeys(("enhancer", "enhancer_template", "enhance_template"), "[enhancer] model and template say it"),
    "show_prompt": ONE_CALL,
    "config": "names the file",
    "chosen_profile": "names the part of the file",
}  # fmt: skip
"""Where argparse leaves a flag -> why no key says it."""


def flags_without_key(parser: argparse.ArgumentParser) -> Iterator[str]:
    keys = all_keys(parser)
    fields = {row.flag.destination: name for name, row in ROWS.items() if row.flag}
    said = {key.target for key in keys.values() if key.way == "field"}
    for command in COMMANDS:
        for action in command_of(parser, command)._actions:
            name = action.dest
            is_key = name in STARTS.values() or fields.get(name) in said
            is_key = is_key or (command == "serve" and ("server", name) in keys)
            if action.help != argparse.SUPPRESS and not is_key:
                yield name


def test_every_flag_is_a_key_or_has_a_reason() -> None:
    assert {*flags_without_key(_parser())} == WITHOUT_KEY.keys()
    starts = {key.target for key in all_keys(_parser()).values() if key.way == "start"}
    loaded_with = {"embedding_cache_bytes": "embedding_cache", "cpu_offload": "offload"}
    loaded_with["no_metadata"] = "no_metadata_at_all"
    assert {loaded_with.get(name, name) for name in STARTS} <= starts


def test_a_flag_without_either_is_noticed() -> None:
    parser = _parser()
    command_of(parser, "generate").add_argument("--loud", action="store_true")
    assert {*flags_without_key(parser)} - WITHOUT_KEY.keys() == {"loud"}


def says(path: Path) -> bool:
    try:
        return bool(embedded_text(path))
    except ImageFileError:
        return False


def test_pictures_without_metadata_by_a_file(run: Run, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = ("generate", "a red star", "--quiet", "--config", str(config))
    assert run(*draw, "--output", "a.png")[0] == 0
    config.write_text(f"{SMALL}no_metadata = true\n")
    assert run(*draw, "--output", "b.png")[0] == 0
    assert run("generate", "--quiet", "--from", "a.png", "--config", str(config), "--output", "c.png")[0] == 0
    assert [says(Path(f"{name}.png")) for name in "abc"] == [True, False, False]
    for name in "bc":
        np.testing.assert_array_equal(np.asarray(Image.open(f"{name}.png")), np.asarray(Image.open("a.png")))
    monkeypatch.setenv("MAX_ZIMAGE_GENERATION_NO_METADATA", "false")
    assert run(*draw, "--output", "d.png")[0] == 0
    assert says(Path("d.png"))
    monkeypatch.delenv("MAX_ZIMAGE_GENERATION_NO_METADATA")
    # Latents carry none, and so the file asks for nothing there.
    assert run(*draw, "--latents-out", "e.npy")[0] == 0


def test_a_server_without_metadata_by_a_file(config: Path) -> None:
    def metadata(text: str, *flags: str) -> bool:
        config.write_text(text)
        return served("--config", str(config), *flags).metadata

    assert metadata("")
    assert not metadata("[generation]\nno_metadata = true")
    assert metadata("[generation]\nno_metadata = true\n[server]\nno_metadata = false")
    assert not metadata("[server]\nno_metadata = true")
    assert not metadata("[server]\nno_metadata = false", "--no-metadata")


def test_pictures_of_a_call_follow_the_file(config: Path, tmp_path: Path, embedded: Pair) -> None:
    config.write_text("[generation]\nno_metadata = true")
    assert ZImagePipeline.prepare(device="cpu").metadata
    assert not ZImagePipeline.prepare(config=config, device="cpu").metadata
    drawn = embedded.ours("a red star", height=64, width=64, num_inference_steps=1, seed=3)
    assert isinstance(drawn, Pictures)
    known = drawn.carried
    assert known is not None
    drawn.save(tmp_path / "usual.png")
    drawn.carried = Carried(known.request, known.drawn_by, known.is_whole, is_usual=False)
    drawn.save(tmp_path / "configured.png")
    drawn.save(tmp_path / "wanted.png", metadata=True)
    assert [says(tmp_path / f"{name}.png") for name in ("usual", "configured", "wanted")] == [True, False, True]
