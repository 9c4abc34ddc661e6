"""The flags of `max-zimage serve`; apart from the command, which imports MAX."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, TypeVar

from max_zimage.cli.common import at_least_one
from max_zimage.cli.enhance_flags import add_enhancer
from max_zimage.cli.field_flags import add_flag
from max_zimage.cli.fleet_flags import add_fleet
from max_zimage.cli.model_flags import add_cache, add_configuration, add_running
from max_zimage.cli.other_flags import add_others
from max_zimage.cli.placement_flags import add_placement
from max_zimage.serving.addresses import MEMORY, proxy_network, store_address
from max_zimage.serving.http.callers import host_name, origin_of
from max_zimage.serving.settings import ConnectionLimits, ServerLimits, ServerSettings

T = TypeVar("T")


def add_serve(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command.

    Args:
        commands: Where to.
    """
    parser = commands.add_parser(
        "serve",
        allow_abbrev=False,
        help="serve a model over HTTP",
        description="Serve a model over HTTP: OpenAI's image routes and MAX's /v1/responses.",
    )
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="a directory or a hub id; the embedded model if not given"
    )
    parser.add_argument("--served-model-name", metavar="NAME", help="what requests call it; its own name if not given")
    parser.add_argument("--host", default=ServerSettings.host, help="address to listen on; 127.0.0.1 if not given")
    parser.add_argument("--port", type=int, default=ServerSettings.port, help="8000 if not given")
    help = "MODEL, as other commands and llm-dit name it"
    parser.add_argument("--model", "--model-path", dest="model_path", metavar="MODEL", help=help)
    parser.add_argument(
        "--weight-path", action="append", metavar="FILE", default=[], help="in place of the model's weights; repeatable"
    )
    add_running(parser)
    help = "show tracebacks of errors at the start"
    parser.add_argument("--debug", "--verbose", "-v", action="store_true", help=help)
    add_placement(parser)
    _add_safety(parser)
    _add_running(parser)
    _add_limits(parser)
    _add_state(parser)
    _add_connections(parser)
    add_fleet(parser)
    add_configuration(parser)
    parser.add_argument("--encoder-only", dest="other_encoder_only", action="store_true", help=argparse.SUPPRESS)
    add_others(parser)


def _add_safety(parser: argparse.ArgumentParser) -> None:
    safety = parser.add_argument_group("safety")
    safety.add_argument(
        "--api-key-file",
        metavar="FILE",
        help="holds the key that clients must send; else MAX_ZIMAGE_API_KEY does, if set",
    )
    safety.add_argument(
        "--allow-remote-images",
        action="store_true",
        help="fetch images that requests name by URL, from public addresses",
    )
    safety.add_argument(
        "--allow-host",
        type=_named(host_name),
        action="append",
        default=[],
        metavar="NAME",
        help="a name by which clients may call the server, besides localhost and its own address; repeatable",
    )
    safety.add_argument(
        "--cors-origin",
        type=_named(origin_of),
        action="append",
        default=[],
        metavar="ORIGIN",
        help="whose web pages may use the server, e.g. https://ui.example.com; repeatable",
    )
    safety.add_argument(
        "--trusted-proxy",
        type=_named(proxy_network),
        action="append",
        default=[],
        metavar="ADDRESS",
        help="whose X-Forwarded-For, -Proto, -Host and -Port are believed, e.g. 10.0.0.0/8; repeatable",
    )
    safety.add_argument(
        "--no-metadata",
        action="store_true",
        help="pictures carry pixels alone: no prompt, no parameters, and not that a model made them",
    )


def _add_running(parser: argparse.ArgumentParser) -> None:
    running = parser.add_argument_group("running")
    help = "of requests that name none: first_block or taylorseer, with :NAME=VALUE,... behind it"
    add_flag(running, "step_cache", help=help)
    running.add_argument("--templates-dir", metavar="DIR", help="templates of your own, before the shipped ones")
    add_cache(running, ServerSettings.embedding_cache_bytes)
    running.add_argument("--lora-folder", metavar="DIR", help="its adapters (LoRA) may be named by requests")
    running.add_argument(
        "--mix-loras",
        action="store_true",
        help="requests under different adapters share steps, each with its own beside the weights; on a CPU, with "
        "--batch-pictures",
    )
    add_enhancer(running)
    running.add_argument("--restart", action="store_true", help="start the worker again when it dies")
    running.add_argument(
        "--batch-pictures",
        type=at_least_one,
        metavar="N",
        help="pictures of waiting requests that may share their steps; 4 on a GPU and 1 on a CPU if not given",
    )
    running.add_argument(
        "--shutdown-seconds",
        type=_seconds,
        metavar="S",
        default=ServerSettings.shutdown_seconds,
        help=f"for work in flight after SIGTERM; {ServerSettings.shutdown_seconds:g} if not given",
    )


def _add_limits(parser: argparse.ArgumentParser) -> None:
    limits = parser.add_argument_group("limits of a request")
    for flag, default, what in (
        ("--max-pixels", ServerLimits.pixels, "height times width"),
        ("--max-steps", ServerLimits.steps, "denoising steps"),
        ("--max-images", ServerLimits.images, "pictures"),
        ("--max-prompt-characters", ServerLimits.prompt_characters, "of each prompt"),
        ("--max-body-bytes", ServerLimits.body_bytes, "of the body, uploads included"),
        ("--max-input-pixels", ServerLimits.input_pixels, "height times width of an image sent in"),
        ("--max-queue", ServerLimits.queue, "requests that wait"),
    ):
        limits.add_argument(
            flag, type=at_least_one, metavar="N", default=default, help=f"{what}; {default} if not given"
        )
    limits.add_argument(
        "--max-prompt-tokens",
        type=at_least_one,
        metavar="N",
        help="of each prompt, for those that ask for them; 512 otherwise, and the checkpoint's most if not given",
    )
    limits.add_argument(
        "--max-seconds",
        type=_seconds,
        metavar="S",
        default=ServerLimits.seconds,
        help=f"from arrival to answer; {ServerLimits.seconds:g} if not given",
    )


def _add_state(parser: argparse.ArgumentParser) -> None:
    state = parser.add_argument_group("requests and pictures that are kept")
    state.add_argument(
        "--state-store",
        type=_named(store_address),
        metavar="URL",
        default=ServerSettings.state_store,
        help=f"of pictures by URL and requests by id, for all replicas, as file:///shared/state; {MEMORY} if not given",
    )
    state.add_argument(
        "--state-seconds",
        type=_seconds,
        metavar="S",
        default=ServerSettings.state_seconds,
        help=f"for which pictures by URL and requests by id are kept; {ServerSettings.state_seconds:g} if not given",
    )
    state.add_argument(
        "--media-bytes",
        type=at_least_one,
        metavar="N",
        default=ServerSettings.media_bytes,
        help=f"of pictures by URL and requests by id, the oldest go first; {ServerSettings.media_bytes} if not given",
    )


def _add_connections(parser: argparse.ArgumentParser) -> None:
    limits = parser.add_argument_group("limits of connections")
    limits.add_argument(
        "--max-connections",
        type=at_least_one,
        metavar="N",
        default=ConnectionLimits.connections,
        help=f"at a time; {ConnectionLimits.connections} if not given",
    )
    for flag, default, what in (
        ("--read-timeout", ConnectionLimits.read_seconds, "for a request to arrive"),
        ("--write-timeout", ConnectionLimits.write_seconds, "for a client to take its answer"),
    ):
        limits.add_argument(
            flag,
            type=_seconds,
            metavar="S",
            default=default,
            help=f"{what}, and one more for each 64 KiB of it; {default:g} if not given",
        )


def _named(read: Callable[[str], T]) -> Callable[[str], T]:
    def checked(text: str) -> T:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return checked


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be a number of seconds, got {text!r}") from error
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return number
