"""flanneld's flags, and ours in the same manner, as click options.

Each flag is also read from `FLANNELD_<NAME>`, and a flag wins over its variable. As with Go's flag package
one dash is as good as two, and a boolean may stand alone or carry a value (`--ip-masq=false`).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from importlib import metadata
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import click
from click.core import ParameterSource

from flannel_ebpf.base.family import Family
from flannel_ebpf.base.options import (
    STATE_FLAGS,
    Described,
    EtcdOptions,
    KubeOptions,
    Options,
    Spelling,
    flags_of,
)
from flannel_ebpf.commands.values import (
    Endpoints,
    Features,
    Listen,
    ListenAddress,
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


_PATH = click.Path(path_type=Path)
_SPELLINGS: Mapping[Spelling, click.ParamType[Any]] = {
    "endpoints": Endpoints(),
    "features": Features(),
    "prefix": Prefix(),
    "listen": Listen(),
    "listen-address": ListenAddress(),
}


def _flag(one: Described, prefix: str = "") -> Callable[[Any], Any]:
    """Build the click option of one flag."""
    attributes: dict[str, Any] = {}
    default = one.default
    if one.about.spelling in {"endpoints", "features"}:
        default = ",".join(default)
    elif one.kind == tuple[str, ...]:
        attributes["multiple"] = True
    elif one.kind is bool:
        attributes.update(is_flag=False, flag_value="true", metavar="[BOOLEAN]")
    name = f"--{prefix}{one.name}".replace("_", "-")
    return click.option(name, cls=Flag, type=_type(one), default=default, help=one.about.text, **attributes)


def _type(one: Described) -> Any:
    """Return click's type of a flag's value, which checks its range."""
    about = one.about
    if about.spelling:
        return _SPELLINGS[about.spelling]
    if get_origin(one.kind) is Literal:
        return click.Choice(get_args(one.kind))
    types = {
        bool: bool,
        int: Number(_whole(about.least), _whole(about.most)),
        float: Seconds(about.least or 0.0, about.most or math.inf),
        Path: _PATH,
        IPv4Address | None: OptionalAddress(Family.V4),
        IPv6Address | None: OptionalAddress(Family.V6),
    }
    return types.get(one.kind, str)


def _whole(bound: float | None) -> int | None:
    return None if bound is None else int(bound)


_ETCD_FLAGS = tuple(_flag(one, "etcd_") for one in flags_of(EtcdOptions))
_KUBE_FLAGS = tuple(_flag(one) for one in flags_of(KubeOptions))
_STATE_FLAGS = tuple(_flag(one) for one in flags_of(Options) if one.name in STATE_FLAGS)
_UP_FLAGS = tuple(_flag(one) for one in flags_of(Options) if one.name not in STATE_FLAGS)

_KLOG_FLAGS = tuple(
    click.option(f"--{name}", cls=Flag, type=str, hidden=True, expose_value=False)
    for name in ("vmodule", "log_backtrace_at")
)
"""flanneld's flags that alter nothing here, so that unit files which have them work."""


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
    return _add(command, _ETCD_FLAGS + _KUBE_FLAGS + _STATE_FLAGS)


def up_flags(command: Function) -> Function:
    """Add every flag of the daemon."""
    own = _ETCD_FLAGS + _KUBE_FLAGS + _STATE_FLAGS + _UP_FLAGS
    return _add(command, own + _LOG_FLAGS + _KLOG_FLAGS)


def _add(command: Function, flags: Sequence[Callable[[Any], Any]]) -> Function:
    for flag in reversed(flags):  # as stacked decorators would
        command = flag(command)
    return command


def without_effect(options: Options) -> list[str]:
    """Return what was asked for and cannot count beside the other flags."""
    usual = Options()
    of_programs = ("fastpath", "attach", "xdp", "source_check", "flow_entries", "revalidate")
    found = []
    if options.datapath == "kernel":
        changed = (name for name in of_programs if getattr(options, name) != getattr(usual, name))
        found += [f"--{name.replace('_', '-')} does nothing with --datapath=kernel" for name in changed]
    if options.datapath != "kernel" and options.fastpath == "off" and options.xdp != "off":
        found.append("--xdp does nothing with --fastpath=off")
    return found


def options_from(values: dict[str, Any]) -> Options:
    """Build Options from parsed flags; those a command has not keep their defaults.

    Raises click's UsageError when flags contradict each other.
    """
    etcd = {field.name: values[f"etcd_{field.name}"] for field in fields(EtcdOptions)}
    for given, missing in (("keyfile", "certfile"), ("certfile", "keyfile")):
        if etcd[given] and not etcd[missing]:
            told = f"--etcd-{given}: {etcd[given]!r} is given without --etcd-{missing}: give both or neither"
            raise click.UsageError(told)
    kube = {field.name: values[field.name] for field in fields(KubeOptions) if field.name in values}
    rest = {name: value for name, value in values.items() if not name.startswith("etcd_")}
    own = {name: value for name, value in rest.items() if name not in kube}
    return Options(etcd=EtcdOptions(**etcd), kube=KubeOptions(**kube), **own)
