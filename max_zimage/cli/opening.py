"""What a server is made of, from the flags of `max-zimage serve`: found and checked, with nothing loaded."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from max_zimage.cli.errors import BadInput, checking
from max_zimage.cli.placement_flags import placement_options
from max_zimage.cli.server_settings import check_mixing, store_of
from max_zimage.request.templates import VARIABLE, Templates

if TYPE_CHECKING:
    from max_zimage.enhancer.base import Enhancer
    from max_zimage.pipeline.loading import CheckedModel
    from max_zimage.serving.running import Opened
    from max_zimage.serving.settings import ServerSettings


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
        from max_zimage.pipeline.storages import VARIABLE as QUANTIZE
        from max_zimage.pipeline.worker_plan import VARIABLE as PLAN
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
        check_mixing(settings, prepared)
        os.environ[PLAN] = prepared.plan.to_json()
    from max_zimage.serving.running import Opened

    return Opened(settings, prepared, store, enhancer)


def _enhancer(prepared: CheckedModel, arguments: argparse.Namespace) -> Enhancer | None:
    """The enhancer that flags or a configuration name; None where neither does.

    Raises:
        ValueError: If there is no such enhancer, or only its template is named.
    """
    from max_zimage.cli.enhancing import opened, refuse_idle

    configured = prepared.enhancer is not None and prepared.enhancer.model is not None
    if arguments.enhancer is None and not configured:
        refuse_idle(arguments, "--enhancer", {"--enhancer-template": arguments.enhancer_template})
        if prepared.sources.defaults.configured.get("enhance"):
            raise BadInput("[generation] enhance asks for an enhancer; give --enhancer too, or leave it out")
        return None
    return opened(prepared, arguments.enhancer, arguments.enhancer_template)


def _check_folder(folder: str | None) -> None:
    if folder is not None and not Path(folder).is_dir():
        raise BadInput(f"--lora-folder {folder} is no folder; name one that holds adapters, or leave it out")
