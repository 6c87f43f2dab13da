"""flanneld's flags, and ours in the same manner, as click options.

Each flag is also read from `FLANNELD_<NAME>`, and a flag wins over its variable. As with Go's flag package
one dash is as good as two, and a boolean may stand alone or carry a value (`--ip-masq=false`).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar, get_args

import click
from click.core import ParameterSource

from flannel_ebpf.base.options import (
    AttachChoice,
    DatapathChoice,
    EtcdOptions,
    FastpathChoice,
    Options,
    SourceCheckChoice,
    XdpChoice,
)
from flannel_ebpf.commands.values import (
    Endpoints,
    Listen,
    ListenAddress,
    Mark,
    Number,
    OptionalAddress,
    Prefix,
    Seconds,
    Verbosity,
)

_PREFIX = "FLANNELD_"

Function = TypeVar("Function", bound=Callable[..., Any])


class Flag(click.Option):
    """An option named as flanneld's: `--name`, `-name` and FLANNELD_NAME."""

    def __init__(self, param_decls: Sequence[str], **attributes: Any) -> None:
        name, *parameter = param_decls
        self.variable = _PREFIX + name.lstrip("-").upper().replace("-", "_")
        shown = attributes.get("default") not in (None, "", 0)
        super().__init__([name, name[1:], *parameter], envvar=self.variable, show_default=shown, **attributes)

    def get_error_hint(self, ctx: click.Context | None) -> str:
        """Say where the value was read: the variable or the flag."""
        if ctx and self.name and ctx.get_parameter_source(self.name) is ParameterSource.ENVIRONMENT:
            return self.variable
        return self.opts[0]

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Show the two-dash name alone."""
        record = super().get_help_record(ctx)
        return record and (record[0].replace(f"{self.opts[1]}, {self.opts[0]}", self.opts[0]), record[1])

    def value_from_envvar(self, ctx: click.Context) -> Any:
        """Read a repeatable flag's variable as one value, as flanneld does: a regex may hold spaces."""
        text = self.resolve_envvar_value(ctx)
        return (text,) if text is not None and self.multiple else text


_DEFAULTS = Options()
_ETCD_DEFAULTS = EtcdOptions()
_PORT = Number(0, 2**16 - 1)
_PATH = click.Path(path_type=Path)


def _flag(name: str, kind: Any, text: str, **attributes: Any) -> Callable[[Any], Any]:
    """Build one flag whose default is that of the option with the same name."""
    field = name.replace("-", "_")
    etcd = field.startswith("etcd_")
    default = getattr(_ETCD_DEFAULTS, field.removeprefix("etcd_")) if etcd else getattr(_DEFAULTS, field)
    if isinstance(default, tuple) and not attributes.get("multiple"):
        default = ",".join(default)
    if isinstance(default, bool):
        attributes.update(is_flag=False, flag_value="true", metavar="[BOOLEAN]")
    return click.option(f"--{name}", cls=Flag, type=kind, default=default, help=text, **attributes)


def _choice(kind: Any) -> click.Choice[str]:
    return click.Choice(get_args(kind))


_ETCD_FLAGS = (
    _flag("etcd-endpoints", Endpoints(), "Comma list of etcd endpoints."),
    _flag("etcd-prefix", Prefix(), "Key prefix of the network."),
    _flag("etcd-keyfile", str, "Private key of the client, PEM."),
    _flag("etcd-certfile", str, "Certificate of the client, PEM."),
    _flag("etcd-cafile", str, "Certificate authority of the servers, PEM; it may stand alone."),
    _flag("etcd-username", str, "User of etcd's own authentication."),
    _flag("etcd-password", str, "Password of etcd's own authentication."),
)

_STATE_FLAGS = (
    _flag("subnet-file", _PATH, "File that tells container runtimes the subnet and MTU."),
    _flag("state-dir", _PATH, "Folder for locks and state of this daemon."),
    _flag("bpf-pin-root", _PATH, "Folder in a BPF file system for programs and maps."),
)

_UP_FLAGS = (
    _flag("iface", str, "Uplink by name or address; repeatable, the first that is there.", multiple=True),
    _flag("iface-regex", str, "Uplink by regular expression, after --iface.", multiple=True),
    _flag("iface-can-reach", str, "Uplink by the route to this address."),
    _flag("public-ip", OptionalAddress(), "Address that other nodes use to reach this one."),
    _flag("subnet-lease-renew-margin", Number(1, 1439), "Minutes before expiry to renew the lease."),
    _flag("ip-masq", bool, "Masquerade traffic that leaves the network."),
    _flag("ip-masq-fully-random-disable", bool, "Masquerade without fully random ports."),
    _flag("iptables-resync", Number(min=1), "Seconds between checks of the firewall rules."),
    _flag("iptables-forward-rules", bool, "Accept forwarded traffic of the network."),
    _flag("ip-blackhole-route", bool, "Keep a blackhole route for the own subnet."),
    _flag("healthz-ip", ListenAddress(), "Address of the health server; empty: every one."),
    _flag("healthz-port", _PORT, "Port of the health server; 0: none."),
    _flag("datapath", _choice(DatapathChoice), "auto: BPF where it can run, else the kernel path."),
    _flag("fastpath", _choice(FastpathChoice), "Packets that BPF carries: of admitted flows, all, none."),
    _flag("revalidate", Seconds(0.1, 3600), "Seconds a flow is carried by BPF before it is looked at anew."),
    _flag("flow-entries", Number(64, 2**24), "Size of the flow table."),
    _flag("attach", _choice(AttachChoice), "How programs come onto tc hooks; auto: tcx where there is one."),
    _flag("pod-grace", Seconds(0, 60), "Seconds that a new pod's veth is left to CNI plugins before clsact."),
    _flag("pod-headroom", bool, "Add a port to the pods' bridge that gives their packets headroom."),
    _flag("source-check", _choice(SourceCheckChoice), "What to do with packets of a wrong source."),
    _flag("xdp", _choice(XdpChoice), "XDP program on the uplink."),
    _flag("fwmark", Mark(), "Bit of the packet mark for use inside this host."),
    _flag("lease-ttl", Number(5, 9_000_000_000), "Seconds a lease lives without renewal."),
    _flag("wipe-grace", Seconds(0, 86_400), "Seconds to keep peers that etcd has suddenly lost."),
    _flag("bpf-objects", _PATH, "Folder of the compiled BPF programs."),
    _flag("metrics-listen", Listen(), "ADDRESS:PORT of the Prometheus endpoint."),
)

_ONLY_ACCEPTED = (
    ("kube-subnet-mgr", bool),
    ("kube-api-url", str),
    ("kubeconfig-file", str),
    ("kube-annotation-prefix", str),
    ("net-config-path", str),
    ("set-node-network-unavailable", bool),
    ("public-ipv6", str),
    ("vmodule", str),
    ("log_backtrace_at", str),
)
"""flanneld's flags that alter nothing here, so that unit files which have them work: klog's, and those about
Kubernetes as long as subnets come from etcd."""


def _kube_or_klog(name: str, kind: Any) -> Callable[[Any], Any]:
    attributes: dict[str, Any] = {"is_flag": False, "flag_value": "true"} if kind is bool else {}
    return click.option(
        f"--{name}",
        cls=Flag,
        type=kind,
        hidden=True,
        expose_value=False,
        callback=_refuse_kubernetes,
        **attributes,
    )


def _refuse_kubernetes(_context: click.Context, parameter: click.Parameter, value: Any) -> None:
    if parameter.name == "kube_subnet_mgr" and value:
        raise click.BadParameter("subnets come from etcd: Kubernetes' subnet manager is not implemented.")


def print_version(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    """Print the version to stderr, as flanneld does, and end."""
    if wanted:
        click.echo(metadata.version("flannel-ebpf"), err=True)
        context.exit()


_LOG_FLAGS = (
    click.option(
        "--v", "verbosity", cls=Flag, type=Verbosity(), default=0, help="1: also say what did not change."
    ),
    click.option(
        "--version",
        "-version",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=print_version,
        hidden=True,
    ),
)


class FlagCommand(click.Command):
    """A command with such flags. It names an unknown one whole: of one with one dash click names a letter."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, as click does."""
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            whole = next((text for text in given if text.startswith(error.option_name)), error.option_name)
            name = whole.partition("=")[0]
            known = [option for param in self.params for option in param.opts]
            near = difflib.get_close_matches(name, known, 1)
            raise click.NoSuchOption(name, possibilities=near, ctx=ctx) from None


def unknown_variables(command: click.Command, environ: Iterable[str]) -> list[str]:
    """Return the names among `environ` that look like a flag's variable and are no flag's."""
    known = {param.variable for param in command.params if isinstance(param, Flag)}
    return sorted(name for name in environ if name.startswith(_PREFIX) and name not in known)


def etcd_flags(command: Function) -> Function:
    """Add the flags of a command that only speaks to etcd."""
    return _add(command, _ETCD_FLAGS)


def node_flags(command: Function) -> Function:
    """Add the flags that say which network's state on this node a command is about."""
    return _add(command, _ETCD_FLAGS + _STATE_FLAGS)


def up_flags(command: Function) -> Function:
    """Add every flag of the daemon."""
    accepted = tuple(_kube_or_klog(name, kind) for name, kind in _ONLY_ACCEPTED)
    return _add(command, _ETCD_FLAGS + _STATE_FLAGS + _UP_FLAGS + _LOG_FLAGS + accepted)


def _add(command: Function, flags: Sequence[Callable[[Any], Any]]) -> Function:
    for flag in reversed(flags):  # as stacked decorators would
        command = flag(command)
    return command


def options_from(values: dict[str, Any]) -> Options:
    """Build Options from parsed flags; those a command has not keep their defaults.

    Raises click's UsageError when flags contradict each other.
    """
    etcd = {field.name: values[f"etcd_{field.name}"] for field in fields(EtcdOptions)}
    for given, missing in (("keyfile", "certfile"), ("certfile", "keyfile")):
        if etcd[given] and not etcd[missing]:
            told = f"--etcd-{given}: {etcd[given]!r} is given without --etcd-{missing}: give both or neither"
            raise click.UsageError(told)
    rest = {name: value for name, value in values.items() if not name.startswith("etcd_")}
    return Options(etcd=EtcdOptions(**etcd), **rest)
