"""What a job's pictures depend on beside its file: pinned, so that a job goes on as what it was, or not at all."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from max_zimage.batch.columns import PICTURES
from max_zimage.batch.pictures_in import contents_of, digests_of
from max_zimage.enhancer.settings import EnhancerSettings
from max_zimage.request.templates import Templates
from max_zimage.version import __version__

_SAME = ("device", "dtype", "weight_path", "quantize", "attention_backend", "no_metadata")
"""Flags without which another picture would come of a row."""


def settings_of(arguments: argparse.Namespace, model: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """What pictures depend on beside the file, as `job.json` has it.

    Args:
        arguments: Of `max-zimage batch`.
        model: The checkpoint, as it was named.
        defaults: What rows get that say nothing of it.

    Raises:
        ValueError: If a picture that rows begin with, or a template, cannot be read.
    """
    pictures = {name: value for name, value in defaults.items() if name in PICTURES}
    return {
        "version": __version__,
        "model": model,
        "id_column": arguments.id_column,
        "ignore": sorted(arguments.ignore),
        "defaults": {name: str(value) for name, value in sorted(defaults.items())},
        "configured": {name: str(value) for name, value in sorted(arguments.configuration.fields.items())},
        "default_pictures": digests_of(contents_of(pictures)),
        "templates": _digest_of_templates(arguments.templates_dir),
        "enhancer": _digest_of_enhancer(arguments.configuration.start.get("enhancer", {})),
        **{name: getattr(arguments, name) for name in _SAME},
    }


def _digest_of_enhancer(values: Mapping[str, Any]) -> str:
    """Of a digest, for an address may say more than everybody is to read; where a key lies changes no prompt."""
    settings = EnhancerSettings.of(dict(values)) if values else EnhancerSettings()
    said = {name: str(value) for name, value in asdict(settings).items() if name != "key_file"}
    return hashlib.sha256(json.dumps([said, settings.system()], sort_keys=True).encode()).hexdigest()


def _digest_of_templates(folder: str | None) -> str:
    found = {name: asdict(each) for name, each in Templates(None if folder is None else Path(folder)).all.items()}
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
