"""Docker's daemon options from subnet.env, byte for byte as flannel's dist/mk-docker-opts.sh writes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flannel_ebpf.base.errors import ConfigError
from flannel_ebpf.host.files import read_small
from flannel_ebpf.host.subnet_env import assignments

PREFIX = "DOCKER_OPT_"


def read_values(path: Path) -> dict[str, str]:
    """Return subnet.env's assignments; raises ConfigError when there is no such file yet.

    flannel's script goes on without one, and Docker then starts on its own 172.17.0.0/16.
    """
    try:
        return dict(assignments(read_small(path)))
    except (OSError, UnicodeDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(
            "-f", str(path), f"the file that the daemon writes when it is ready ({what})"
        ) from error


def options(values: Mapping[str, str], *, ip_masq: bool, direct_routing: bool) -> dict[str, str]:
    """Return Docker's options by the variable's name, sorted as the shell's `set` prints them.

    `ip_masq`: also whether Docker masquerades, which it must not where we do. `direct_routing`: let Docker
    28.2 and later accept packets that are routed to containers from other hosts. Raises ConfigError.
    """
    found = {}
    if direct_routing:
        found["ALLOW_DIRECT_ROUTING"] = "--allow-direct-routing"
    if values.get("FLANNEL_SUBNET"):
        found["BIP"] = f"--bip={values['FLANNEL_SUBNET']}"
    if values.get("FLANNEL_IPMASQ") and ip_masq:
        ours = values["FLANNEL_IPMASQ"]
        if ours not in ("true", "false"):
            raise ConfigError("FLANNEL_IPMASQ", ours, "true or false")
        found["IPMASQ"] = f"--ip-masq={'false' if ours == 'true' else 'true'}"
    if values.get("FLANNEL_MTU"):
        found["MTU"] = f"--mtu={values['FLANNEL_MTU']}"
    return {PREFIX + name: text for name, text in sorted(found.items())}


def render(
    found: Mapping[str, str], environ: Mapping[str, str], *, key: str, each: bool, combined: bool
) -> str:
    """Return the file's text: `each` option as a variable of its own, all `combined` in one called `key`.

    What `environ` has under these names stands there too, as with the script.
    """
    every = {name: text for name, text in environ.items() if name.startswith(PREFIX)} | dict(found)
    lines = [f'{name}="{text}"' for name, text in sorted(every.items())] if each else []
    if combined:
        before = f"{environ[key]} " if environ.get(key) else ""
        lines.append(f'{key}="{before}{"".join(f" {text}" for _, text in sorted(every.items()))}"')
    return "".join(f"{line}\n" for line in lines)
