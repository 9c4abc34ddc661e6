"""`max-zimage serve`: the flags of a server, checked, and its life."""

from __future__ import annotations

import argparse
import logging
import os
import resource
import socket
from pathlib import Path

from max_zimage import embedded
from max_zimage.cli.errors import BadInput, checking
from max_zimage.cli.options import model_path
from max_zimage.cli.placement_flags import placement_options
from max_zimage.request.templates import VARIABLE, Templates
from max_zimage.serving.settings import ConnectionLimits, ServerLimits, ServerSettings
from max_zimage.serving.store.files import StoreError, StoreFiles
from max_zimage.serving.store.sealed import Seal
from max_zimage.serving.store.state_store import StateStore

_OTHER_FILES = 512
"""Files that a server has open besides its connections: those that it is about to refuse, models, pipes, libraries."""

KEY_VARIABLE = "MAX_ZIMAGE_API_KEY"


def serve(arguments: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        The exit code.

    Raises:
        BadInput: If the model, the device, the key file or the port does not do; nothing is loaded before.
    """
    settings = settings_of(arguments)
    _check_port(settings.host, settings.port)
    _check_files(settings.connections.connections)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with checking():
        store = _store(settings)
        if arguments.templates_dir is not None:
            # By the environment, which the worker and MAX's own objects have too.
            os.environ[VARIABLE] = str(Path(arguments.templates_dir).resolve())
        _ = Templates().all
        _check_folder(settings.lora_folder)
        from max_zimage import ZImagePipeline
        from max_zimage.pipeline.placing import VARIABLE as PLAN
        from max_zimage.pipeline.storages import VARIABLE as QUANTIZE
        from max_zimage.serving.capacity import with_capacity
        from max_zimage.serving.tracing import check

        check()

        prepared = ZImagePipeline.prepare(
            settings.model,
            device=settings.device,
            dtype=settings.dtype,
            weight_path=settings.weight_paths,
            step_cache=settings.step_cache,
            quantize=arguments.quantize,
            config=arguments.configuration,
            **placement_options(arguments),
        )
        # By the environment, which the worker has too.
        os.environ[QUANTIZE] = prepared.sources.quantize
        prepared = with_capacity(settings, prepared)
        assert prepared.plan is not None
        os.environ[PLAN] = prepared.plan.to_json()
    from max_zimage.serving.server import run

    return run(settings, prepared, store)


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


def _store(settings: ServerSettings) -> StateStore:
    """The store for requests and pictures, tried before anything is loaded."""
    try:
        files, seal = StoreFiles(settings.state_store), Seal(settings.api_key)
        return StateStore(files, seal, room=settings.media_bytes, seconds=settings.state_seconds)
    except StoreError as error:
        raise BadInput(f"--state-store {error}; name another, or leave it out for one in memory") from error


def _check_folder(folder: str | None) -> None:
    if folder is not None and not Path(folder).is_dir():
        raise BadInput(f"--lora-folder {folder} is no folder; name one that holds adapters, or leave it out")


def _check_port(host: str, port: int) -> None:
    """Say at once that the port is taken, and not after minutes of loading."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.create_server((host, port), family=family):
            pass
    except (OSError, OverflowError) as error:
        raise BadInput(f"--host {host} --port {port}: {error}; choose another") from error


def _check_files(connections: int) -> None:
    """Have the system allow as many open files as connections need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + _OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise BadInput(
            f"--max-connections {connections} needs {needed} open files, this system allows {hard} (ulimit -Hn); "
            f"{max(1, hard - _OTHER_FILES)} would do, or have the limit raised"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
