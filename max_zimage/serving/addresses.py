"""Addresses that a server is started with, checked while its flags are read."""

from __future__ import annotations

import ipaddress
import re

MEMORY = "memory"
"""In place of a store's address: this process alone."""

_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.DOTALL)


def store_address(text: str) -> str:
    """The address of a store as it is kept.

    Raises:
        ValueError: If it is none; whether it can be used is found out by `max_zimage.serving.store.files.StoreFiles`.
    """
    if text == MEMORY:
        return text
    match = _ADDRESS.fullmatch(text)
    if match is None or "::" in text or not match[2].strip("/"):
        raise ValueError(f'must be "{MEMORY}" or a URL such as file:///shared/state, got {text!r}')
    if match[1] == MEMORY:
        raise ValueError(f'must be "{MEMORY}" for a store that goes with the process, got {text!r}')
    if match[1] in ("file", "local") and not match[2].startswith("/"):
        raise ValueError(f"must have three slashes and the whole path, as in file:///shared/state, got {text!r}")
    return text.rstrip("/")


def proxy_network(text: str) -> str:
    """An address or a network of proxies as it is kept.

    Raises:
        ValueError: If it is neither; names are none, since they would have to be looked up for each request.
    """
    try:
        return str(ipaddress.ip_network(text))
    except ValueError as error:
        raise ValueError(f"must be an address or a network such as 10.0.0.0/8, got {text!r}: {error}") from error
