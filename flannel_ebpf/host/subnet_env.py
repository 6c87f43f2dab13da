"""`subnet.env`, through which container runtimes learn this node's subnet and MTU.

Format and permissions: flannel pkg/subnet/subnet.go. The CNI plugin's parser knows neither quotes nor
spaces, so the file is written without any; it is read back as tolerantly as flanneld does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from flannel_ebpf.base.errors import ConfigError
from flannel_ebpf.base.family import Family, Network, family_of
from flannel_ebpf.host.files import read_small, replace_file

_ASSIGNMENT = re.compile(
    r"""\s* (?:export\s+)? (?P<key>[A-Za-z_][\w.]*) \s*[=:]\s*
        (?: "(?P<double>[^"]*)" | '(?P<single>[^']*)' | (?P<bare>.*?) ) \s* (?:(?<!\S)\#.*)?""",
    re.VERBOSE,
)


_WORDS = {Family.V4: "FLANNEL", Family.V6: "FLANNEL_IPV6"}


@dataclass(frozen=True, slots=True)
class SubnetEnv:
    """What the file says of a node: its subnet and the network around it for each family, IPv4 first."""

    networks: tuple[Network, ...]
    subnets: tuple[Network, ...]
    mtu: int
    ip_masq: bool


@dataclass(frozen=True, slots=True)
class Previous:
    """What an earlier daemon left in the file, of those families of which it says something usable.

    `warning` says why something in the file could not be used, and is "" otherwise. A missing file is
    no reason to warn.
    """

    networks: tuple[Network, ...] = ()
    subnets: tuple[Network, ...] = ()
    warning: str = ""


def render(env: SubnetEnv) -> str:
    """Return the file's text; FLANNEL_SUBNET is the subnet's first host address, the bridge's."""
    families = ""
    for network, subnet in zip(env.networks, env.subnets, strict=True):
        word = _WORDS[family_of(network)]
        families += f"{word}_NETWORK={network}\n"
        families += f"{word}_SUBNET={subnet.network_address + 1}/{subnet.prefixlen}\n"
    return f"{families}FLANNEL_MTU={env.mtu}\nFLANNEL_IPMASQ={'true' if env.ip_masq else 'false'}\n"


def write(path: Path, env: SubnetEnv) -> None:
    """Replace the file in one step, so that a reader sees the old text or the new one.

    Folder 0755, file 0644. Raises ConfigError when the place cannot be written.
    """
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        replace_file(path, render(env))
    except OSError as error:
        raise ConfigError(
            "--subnet-file", str(path), f"a file that can be written ({error.strerror})"
        ) from error


def update(path: Path, env: SubnetEnv) -> None:
    """Write the file unless it says just this already; raises ConfigError."""
    try:
        if read_small(path) == render(env):
            return
    except (OSError, UnicodeDecodeError):
        pass  # missing or unreadable: writing replaces it
    write(path, env)


def read(path: Path) -> Previous:
    """Read what an earlier daemon wrote: quotes, comments, spaces and `export` do not matter.

    Never raises: an unusable file is a file that says nothing, with a warning.
    """
    try:
        text = read_small(path)
    except FileNotFoundError:
        return Previous()
    except (OSError, UnicodeDecodeError) as error:
        return Previous(warning=f"{path} cannot be read and is ignored: {error}")
    values = dict(assignments(text))
    try:
        return Previous(_networks(values, "NETWORK"), _networks(values, "SUBNET"))
    except ConfigError as error:
        return Previous(warning=f"{path} is ignored: {error}")


def assignments(text: str) -> list[tuple[str, str]]:
    """Return (name, value) of every line that is an assignment, without quotes."""
    found = (_ASSIGNMENT.fullmatch(line) for line in text.splitlines())
    return [
        (match["key"], match["double"] or match["single"] or match["bare"] or "") for match in found if match
    ]


def _networks(values: dict[str, str], name: str) -> tuple[Network, ...]:
    found = (_network(values, f"{word}_{name}", family) for family, word in _WORDS.items())
    return tuple(network for network in found if network)


def _network(values: dict[str, str], key: str, family: Family) -> Network | None:
    text = values.get(key, "")
    if not text:
        return None
    try:
        address, _, length = text.partition("/")
        return family.network(address, int(length), strict=False)
    except ValueError as error:
        raise ConfigError(key, text, "an address with its prefix length such as 10.1.74.1/24") from error
