"""The keys of a network config that mean something to any version of flannel."""

from __future__ import annotations

import json
from collections.abc import Iterator

_TOP = frozenset(
    """
    enableipv4 enableipv6 enablenftables network subnetlen subnetmin subnetmax
    ipv6network ipv6subnetlen ipv6subnetmin ipv6subnetmax backend
    """.split()  # noqa: SIM905 - a list of them would be a page long
)
_BACKEND = frozenset(
    """
    type vni port mtu gbp learning directrouting macprefix name psk listenport listenportv6
    persistentkeepaliveinterval mode udpencap espproposal
    """.split()  # noqa: SIM905 - likewise
)
"""Those of flannel's documentation, in small letters; Go's JSON reader knows no case."""


def unknown_keys(text: str) -> Iterator[str]:
    """Yield the keys of a config, one that could be read, that no backend of flannel's knows."""
    config = json.loads(text)
    yield from (key for key in config if key.lower() not in _TOP)
    backend = next((value for key, value in config.items() if key.lower() == "backend"), None)
    yield from (f"Backend.{key}" for key in backend or {} if key.lower() not in _BACKEND)
