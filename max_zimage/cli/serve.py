"""`max-zimage serve`: the flags of a server, checked, and its life."""

from __future__ import annotations

import argparse
import logging
import os
import resource
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from max_zimage.cli.errors import BadInput, checking
from max_zimage.cli.fleet import fleet_of, serve_fleet
from max_zimage.cli.placement_flags import placement_options
from max_zimage.cli.server_settings import settings_of, store_of
from max_zimage.request.templates import VARIABLE, Templates

if TYPE_CHECKING:
    from max_zimage.enhancer.base import Enhancer
    from max_zimage.pipeline.loading import CheckedModel
    from max_zimage.serving.running import Opened
    from max_zimage.serving.settings import ServerSettings

_OTHER_FILES = 512
"""Files that a server has open besides its connections: those that it is about to refuse, models, pipes, libraries."""


def serve(arguments: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        The exit code.

    Raises:
        BadInput: If the model, the device, the key file or the port does not do; nothing is loaded before.
    """
    settings = settings_of(arguments)
    check_port(settings.host, settings.port)
    fleet = fleet_of(arguments, settings)
    if fleet is None:
        _check_files(settings.connections.connections)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if fleet is not None:
        return serve_fleet(arguments.words, settings, fleet)
    found = opened(arguments, settings)
    from max_zimage.serving.server import run

    return run(found)


def opened(arguments: argparse.Namespace, settings: ServerSettings) -> Opened:
    """Check all that a server is made of, and leave in the environment what its worker has to know.

    Args:
        arguments: Of `max-zimage serve`.
        settings: From them.

    Raises:
        BadInput: If the model, the device or a folder does not do; nothing is loaded before.
    """
    with checking():
        store = store_of(settings)
        if arguments.templates_dir is not None:
            # By the environment, which the worker and MAX's own objects have too.
            os.environ[VARIABLE] = str(Path(arguments.templates_dir).resolve())
        _ = Templates().all
        _check_folder(settings.lora_folder)
        from max_zimage import ZImagePipeline
        from max_zimage.pipeline.attention import VARIABLE as ATTENTION
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
            attention_backend=arguments.attention_backend,
            config=arguments.configuration,
            **placement_options(arguments),
        )
        # By the environment, which the worker has too.
        os.environ[QUANTIZE] = prepared.sources.quantize
        os.environ[ATTENTION] = prepared.sources.attention_backend or "auto"
        enhancer = _enhancer(prepared, arguments)
        prepared = with_capacity(settings, prepared, enhancer)
        assert prepared.plan is not None
        os.environ[PLAN] = prepared.plan.to_json()
    from max_zimage.serving.running import Opened

    return Opened(settings, prepared, store, enhancer)


def _enhancer(prepared: CheckedModel, arguments: argparse.Namespace) -> Enhancer | None:
    """The enhancer that flags or a configuration name; None where neither does.

    Raises:
        ValueError: If there is no such enhancer, or only its template is named.
    """
    from max_zimage.cli.enhancing import opened

    configured = prepared.enhancer is not None and prepared.enhancer.model is not None
    if arguments.enhancer is None and not configured:
        if arguments.enhancer_template is not None:
            raise BadInput("--enhancer-template would do nothing without --enhancer; give that too, or leave it out")
        if prepared.sources.defaults.configured.get("enhance"):
            raise BadInput("[generation] enhance asks for an enhancer; give --enhancer too, or leave it out")
        return None
    return opened(prepared, arguments.enhancer, arguments.enhancer_template)


def _check_folder(folder: str | None) -> None:
    if folder is not None and not Path(folder).is_dir():
        raise BadInput(f"--lora-folder {folder} is no folder; name one that holds adapters, or leave it out")


def check_port(host: str, port: int) -> None:
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
