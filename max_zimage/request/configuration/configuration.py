"""What a configuration file and the environment come to.

    code's defaults < file < environment < the picture of --from < flags

The file is the one that is named, or else `config.toml` in the folder `max-zimage` of `$XDG_CONFIG_HOME`; nothing is
ever looked for in the working folder.

Reference: reference/api.md.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from max_zimage.request.configuration.environment import of_environment
from max_zimage.request.configuration.key import Key
from max_zimage.request.configuration.keys import keys_of
from max_zimage.request.configuration.profiles import DEFAULT, ConfigurationError, Keys, Said, read_profile
from max_zimage.request.configuration.settling import Settled, settle


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """What is configured.

    Attributes:
        file: That was read; None for none.
        profile: Of it.
        keys: All there are, by section and name.
        settled: What they say.
    """

    file: Path | None = None
    profile: str = DEFAULT
    keys: Keys = field(default_factory=keys_of)
    settled: Settled = field(default_factory=Settled)

    @property
    def fields(self) -> dict[str, Any]:
        """Argument of a request -> its value where a request says nothing."""
        return {name: setting.value for name, setting in self.settled.fields.items()}

    @property
    def start(self) -> dict[str, Any]:
        """Argument of `ZImagePipeline.from_pretrained` -> its value where it is left at its default."""
        return {name: setting.value for name, setting in self.settled.start.items()}

    def only(self, names: Collection[str]) -> Configuration:
        """The same with some of its fields."""
        fields = {name: setting for name, setting in self.settled.fields.items() if name in names}
        return replace(self, settled=replace(self.settled, fields=fields))


def default_file(environment: Mapping[str, str] | None = None) -> Path | None:
    """Where the file is looked for that nobody names; None if there is no such place."""
    environment = os.environ if environment is None else environment
    folder = environment.get("XDG_CONFIG_HOME")
    if folder and Path(folder).is_absolute():  # others are to be left aside, says the standard
        return Path(folder) / "max-zimage" / "config.toml"
    home = environment.get("HOME")
    return Path(home) / ".config" / "max-zimage" / "config.toml" if home else None


def read_configuration(
    file: str | os.PathLike[str] | None = None,
    profile: str | None = None,
    *,
    server: Mapping[str, Key] | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, object] = MappingProxyType({}),
) -> Configuration:
    """Read the file and the environment.

    Args:
        file: The file; None looks in the default place, where there may be none.
        profile: Of the file; None is `[default]`, which may be missing.
        server: Keys of `[server]`, by name; None leaves that section aside.
        environment: In place of the process's.
        flags: Of keys -> their values, which stand above all else.

    Raises:
        ConfigurationError: With all that is wrong.
    """
    environment = os.environ if environment is None else environment
    keys, problems = keys_of(server), list[str]()
    path = default_file(environment) if file is None else Path(file)
    if file is None and path is not None and not path.is_file():
        if profile is not None:
            raise ConfigurationError(f"there is no profile {profile!r}: no file is named, and {path} is not there")
        path = None
    layers: list[list[Said]] = [] if path is None else read_profile(path, profile, keys, problems)
    by_flag = {key.flag: key for key in keys.values() if key.flag}
    given = [Said(key=by_flag[flag], value=value, origin=f"flag {flag}") for flag, value in flags.items()]
    settled = settle([*layers, list(of_environment(environment, keys, problems)), given], problems)
    if problems:
        text = problems[0] if len(problems) == 1 else "\n- ".join([f"{len(problems)} things are wrong:", *problems])
        raise ConfigurationError(text)
    return Configuration(file=path, profile=profile or DEFAULT, keys=keys, settled=settled)
