"""Settings of a server, from the flags of `max-zimage serve` and the environment."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from max_zimage import embedded
from max_zimage.cli.errors import BadInput
from max_zimage.cli.options import model_path
from max_zimage.device.plans import HOST
from max_zimage.serving.settings import ConnectionLimits, ServerLimits, ServerSettings
from max_zimage.serving.store.files import StoreError, StoreFiles
from max_zimage.serving.store.sealed import Seal
from max_zimage.serving.store.state_store import StateStore

if TYPE_CHECKING:
    from max_zimage.pipeline.loading import CheckedModel

KEY_VARIABLE = "MAX_ZIMAGE_API_KEY"


def settings_of(arguments: argparse.Namespace) -> ServerSettings:
    """The settings that flags and environment name.

    Raises:
        BadInput: If the key file cannot be read or is empty.
    """
    model = model_path(arguments.model)
    return ServerSettings(
        model=model,
        name=arguments.served_model_name or (embedded.NAME if model is None else model.rstrip("/").split("/")[-1]),
        host=arguments.host,
        port=arguments.port,
        device=arguments.device,
        dtype=arguments.dtype or "auto",
        weight_paths=tuple(arguments.weight_path),
        api_key=_api_key(arguments.api_key_file),
        allow_remote_images=arguments.allow_remote_images,
        restart=arguments.restart,
        step_cache=arguments.step_cache,
        lora_folder=None if arguments.lora_folder is None else str(Path(arguments.lora_folder).resolve()),
        batch_pictures=arguments.batch_pictures,
        mix_loras=arguments.mix_loras,
        shutdown_seconds=arguments.shutdown_seconds,
        media_bytes=arguments.media_bytes,
        state_store=arguments.state_store,
        state_seconds=arguments.state_seconds,
        trusted_proxies=tuple(arguments.trusted_proxy),
        embedding_cache_bytes=arguments.embedding_cache,
        metadata=not arguments.no_metadata,
        allow_hosts=tuple(arguments.allow_host),
        cors_origins=tuple(arguments.cors_origin),
        connections=ConnectionLimits(
            connections=arguments.max_connections,
            read_seconds=arguments.read_timeout,
            write_seconds=arguments.write_timeout,
        ),
        limits=ServerLimits(
            pixels=arguments.max_pixels,
            steps=arguments.max_steps,
            images=arguments.max_images,
            prompt_characters=arguments.max_prompt_characters,
            prompt_tokens=arguments.max_prompt_tokens,
            body_bytes=arguments.max_body_bytes,
            queue=arguments.max_queue,
            input_pixels=arguments.max_input_pixels,
            seconds=arguments.max_seconds,
        ),
    )


def _api_key(file: str | None) -> str | None:
    """The key, from a file or the environment: never from the command line, which all users of a machine can read."""
    if file is None:
        return _key(os.environ[KEY_VARIABLE], KEY_VARIABLE) if KEY_VARIABLE in os.environ else None
    try:
        return _key(Path(file).read_text(encoding="utf-8"), f"--api-key-file {file}")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"--api-key-file {file} cannot be read: {error}") from error


def _key(text: str, where: str) -> str:
    key = text.strip()
    if not key:
        raise BadInput(f"{where} is empty; put the key into it, or leave it out for a server without one")
    return key


def check_mixing(settings: ServerSettings, prepared: CheckedModel) -> None:
    """Refuse `--mix-loras` where it could do nothing.

    Args:
        settings: The server's.
        prepared: The checkpoint, with where its components go.

    Raises:
        BadInput: With the flag that is wanted besides, or what is in the way.
    """
    if not settings.mix_loras:
        return
    defaults = prepared.sources.defaults
    if settings.lora_folder is None and not defaults.loras:  # with some, requests may ask for none
        raise BadInput("--mix-loras would do nothing without --lora-folder; give that too, or leave it out")
    if defaults.step_cache is not None:
        raise BadInput("--mix-loras would do nothing where all requests have a step cache; leave out one of them")
    assert prepared.plan is not None
    if (device := prepared.plan.devices["transformer"]) != HOST:
        raise BadInput(f"--mix-loras is for a transformer on a CPU, and it goes to {device}; leave it out")
    if prepared.sources.plans["transformer"].kept_as is not None or prepared.plan.residency == "streamed":
        raise BadInput("--mix-loras is for a transformer that is neither quantized nor streamed; leave it out")
    if settings.pictures_together(on_host=True) == 1:
        raise BadInput("--mix-loras would do nothing where one picture is drawn at a time; give --batch-pictures too")


def store_of(settings: ServerSettings) -> StateStore:
    """The store for requests and pictures, tried before anything is loaded."""
    try:
        files, seal = StoreFiles(settings.state_store), Seal(settings.api_key)
        return StateStore(files, seal, room=settings.media_bytes, seconds=settings.state_seconds)
    except StoreError as error:
        raise BadInput(f"--state-store {error}; name another, or leave it out for one in memory") from error
