"""`max-zimage serve --ray`: replicas of one server on Ray, and what a `serve.yaml` names.

Replicas read the command's own words again where they are, in a process that may have another device than this one.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from max_zimage.cli.errors import BadInput, checking
from max_zimage.cli.fleet_words import arguments_of, encoder_by, given_of, opened_by
from max_zimage.cli.server_settings import KEY_VARIABLE, settings_of
from max_zimage.host.ray_clusters import LOCAL, before_ray
from max_zimage.serving.addresses import MEMORY
from max_zimage.serving.ray_serve.settings import FleetSettings
from max_zimage.serving.settings import ServerSettings

if TYPE_CHECKING:
    from ray.serve import Application

    from max_zimage.request.configuration.configuration import Configuration

_FLAGS = {
    "replicas": "--replicas",
    "max_replicas": "--max-replicas",
    "encoders": "--encoders",
    "max_encoders": "--max-encoders",
    "replica_cpus": "--replica-cpus",
    "replica_gpus": "--replica-gpus",
}

_PROXY = "connections are those of Ray's proxy, whose time limits are Ray's"
_OF_ONE_SERVER = {"read_timeout": _PROXY, "write_timeout": _PROXY}
_OF_A_COMMAND = {
    "port": "the port of Ray's proxy is that of http_options in the file",
    "ray": "the cluster is the one that the file is given to",
}
"""Flags that a fleet, and a file for Ray, have no use for -> why."""


def fleet_of(arguments: argparse.Namespace, settings: ServerSettings) -> FleetSettings | None:
    """What is asked for besides the server; None for a server alone.

    Args:
        arguments: Of `max-zimage serve`.
        settings: From them.

    Raises:
        BadInput: If flags do not go together, or Ray is not installed.
    """
    given = {name: getattr(arguments, name) for name in _FLAGS if getattr(arguments, name) is not None}
    if arguments.ray is None:
        if given:
            raise BadInput(
                f"{_FLAGS[next(iter(given))]} would do nothing without --ray; give that too, or leave it out"
            )
        return None
    if importlib.util.find_spec("ray") is None:
        raise BadInput("--ray needs Ray, which is not installed; install it with: pip install 'max-zimage[ray]'")
    if arguments.ray != LOCAL and settings.api_key is not None and arguments.api_key_file is None:
        raise BadInput(
            f"{KEY_VARIABLE} is not known to replicas on other nodes; give --api-key-file, a file that all of them have"
        )
    replicas = given.get("replicas", 1)
    most = given.get("max_replicas", replicas)
    if most < replicas:
        raise BadInput(f"--max-replicas {most} is below --replicas {replicas}; give at least as many")
    encoders = given.get("encoders", int("max_encoders" in given))
    most_encoders = given.get("max_encoders", encoders)
    if most_encoders < encoders:
        raise BadInput(f"--max-encoders {most_encoders} is below --encoders {encoders}; give at least as many")
    if most > 1 and settings.state_store == MEMORY:
        raise BadInput(
            "several replicas need a store for pictures by URL and requests by id, which any of them may be asked for; "
            "give --state-store file:///shared/state, or another that all of them reach"
        )
    return FleetSettings(
        address=arguments.ray,
        replicas=replicas,
        max_replicas=most,
        encoders=encoders,
        max_encoders=most_encoders,
        cpus=given.get("replica_cpus"),
        gpus=_gpus(given.get("replica_gpus"), settings.device, arguments.devices),
    )


def _gpus(given: float | None, device: str, devices: str | Sequence[str] | None) -> float | None:
    """How many GPUs Ray gives to each replica; None for one where the cluster has any.

    Args:
        given: How many are asked for.
        device: Of each.
        devices: Or several that compute together.

    Raises:
        BadInput: If they are idle, or fewer than a replica would name.
    """
    if not devices:
        usual = {"cpu": 0.0, "auto": None}.get(device, 1.0)
        if device == "cpu" and given:
            raise BadInput(f"--replica-gpus {given:g} would be idle with --device cpu; leave one of them out")
        return usual if given is None else given
    from max_zimage.device.mesh import numbers_of

    with checking():
        numbers = numbers_of(devices)
    gpus = len(numbers) if given is None else given
    # Ray shows a replica its own GPUs alone, and these are numbered anew.
    needed = max([len(numbers), *(number + 1 for number in numbers)])
    if gpus < needed:
        named = devices if isinstance(devices, str) else ",".join(devices)
        way = ", or number the devices from 0" if needed > len(numbers) else ""
        raise BadInput(
            f"--devices {named} names more than the {gpus:g} that Ray gives to each replica, where they are numbered "
            f"from 0; give --replica-gpus {needed}{way}"
        )
    return float(gpus)


def serve_fleet(arguments: argparse.Namespace, settings: ServerSettings, fleet: FleetSettings) -> int:
    """Serve until a signal ends it.

    Args:
        arguments: Of the command, its own words among them.
        settings: Of each server.
        fleet: How many, and where.

    Returns:
        The exit code.

    Raises:
        BadInput: If a flag would do nothing, or Ray Serve listens elsewhere already.
    """
    _refuse(arguments.words, _OF_ONE_SERVER)
    before_ray(fleet.address)
    from max_zimage.checkpoint.locate import resolve_model
    from max_zimage.serving.ray_serve.run import OtherAddressError, run

    if fleet.address == LOCAL and settings.model is not None:  # elsewhere it may lie elsewhere
        with checking():
            resolve_model(settings.model)
    try:
        return run(settings, fleet, lambda: _application(tuple(arguments.words), arguments, settings, fleet))
    except OtherAddressError as error:
        raise BadInput(str(error)) from error


def app(arguments: Mapping[str, Any]) -> Application:
    """The fleet of a `serve.yaml`, whose `import_path` is `max_zimage.cli.fleet:app`.

    Args:
        arguments: Its `args`: `flags`, a list of words of `max-zimage serve`.

    Raises:
        BadInput: If they do not do.
    """
    unknown = sorted({*arguments} - {"flags"})
    flags = arguments.get("flags", [])
    if unknown or not isinstance(flags, list) or not all(isinstance(each, str) for each in flags):
        raise BadInput("args: has one key, flags: a list of words as of max-zimage serve, such as [--replicas, '2']")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    _refuse(("serve", *flags), _OF_ONE_SERVER | _OF_A_COMMAND)
    words = ("serve", "--ray", "auto", *flags)
    parsed = arguments_of(words)
    settings = settings_of(parsed)
    fleet = fleet_of(parsed, settings)
    assert fleet is not None
    return _application(words, parsed, settings, fleet)


def _refuse(words: Sequence[str], idle: Mapping[str, str]) -> None:
    """Refuse flags that would do nothing. Keys of a configuration file may be for other servers that read it, too.

    Args:
        words: Of the command.
        idle: Where argparse leaves them -> why.
    """
    given = given_of(words)
    for name in (each for each in idle if each in given):
        raise BadInput(f"--{name.replace('_', '-')} would do nothing: {idle[name]}; leave it out")


def _application(
    words: tuple[str, ...], arguments: argparse.Namespace, settings: ServerSettings, fleet: FleetSettings
) -> Application:
    from max_zimage.serving.ray_serve.deployment import application
    from max_zimage.serving.ray_serve.encoding import CONFIGURED

    configuration: Configuration = arguments.configuration
    said = configuration.start | configuration.fields
    configured = {name: said[name] for name in CONFIGURED if name in said}
    return application(settings, fleet, partial(opened_by, words), partial(encoder_by, words), configured)
