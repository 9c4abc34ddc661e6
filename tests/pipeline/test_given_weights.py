"""Weight files in place of a hub id's own, which are then not downloaded; the hub is played by a test."""

from __future__ import annotations

from pathlib import Path

import pytest

from max_zimage import ZImagePipeline
from max_zimage.embedded import PATH as EMBEDDED
from max_zimage.pipeline.encoder import ZImageTextEncoder


def test_weights_that_are_given_are_not_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wanted: list[str] = []

    def download(_: str, allow_patterns: list[str], revision: None) -> str:
        wanted[:] = allow_patterns
        return str(EMBEDDED)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    for component, name in (("transformer", "t.safetensors"), ("vae", "v.safetensors"), ("text_encoder", "e")):
        (file,) = (EMBEDDED / component).glob("*.safetensors")
        (tmp_path / name).with_suffix(".safetensors").symlink_to(file)
    files = [tmp_path / name for name in ("t.safetensors", "v.safetensors")]
    ZImagePipeline.prepare("someone/tiny-zimage", device="cpu", weight_path=files)
    assert {name.partition("/")[0] for name in wanted if "safetensors" in name} == {"text_encoder"}
    assert {"transformer/config.json", "vae/config.json", "tokenizer/*"} <= set(wanted)
    ZImageTextEncoder.prepare("someone/tiny-zimage", device="cpu", weight_path=[tmp_path / "e.safetensors"])
    assert not [name for name in wanted if "safetensors" in name]
