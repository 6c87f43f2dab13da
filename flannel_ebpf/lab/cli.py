"""`flannel-ebpf lab`: build, look at, enter and remove a cluster on this machine."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType

import click

from flannel_ebpf.base.errors import LabError
from flannel_ebpf.lab import netns, teardown
from flannel_ebpf.lab.cluster import Lab, labs
from flannel_ebpf.lab.drawing import draw
from flannel_ebpf.lab.kube_server import kube_programs
from flannel_ebpf.lab.node import Node
from flannel_ebpf.lab.spec import BACKENDS, DATAPATHS, FAMILIES, KUBE_PROXY_MODES, LabSpec

name_option = click.option("--name", default="lab", show_default=True, help="Which lab.")


@click.group(short_help="Build a cluster on this machine, to try or test.")
def lab() -> None:
    """Build a cluster on this machine: real etcd, nodes and pods as network namespaces."""


@lab.command()
@click.option("--nodes", default=2, show_default=True, help="How many nodes, n1 and on.")
@click.option("--pods", default=2, show_default=True, help="How many pods on each, n1p1 and on.")
@click.option("--backend", type=click.Choice(BACKENDS), default="vxlan", show_default=True)
@click.option("--datapath", type=click.Choice(DATAPATHS), default="auto", show_default=True)
@click.option(
    "--fastpath", type=click.Choice(["auto", "flows", "subnets", "off"]), help="Default: the daemon's."
)
@click.option("--family", type=click.Choice(tuple(FAMILIES)), default="4", show_default=True, help="Of pods.")
@click.option("--network", default="10.1.0.0/16", show_default=True, help="The overlay's IPv4 network.")
@click.option(
    "--kube", is_flag=False, flag_value="", type=click.Path(path_type=Path), metavar="[FOLDER]",
    help="With the API server and kube-proxy that lie in FOLDER; default: what `make kube` built.",
)  # fmt: skip
@click.option("--kube-proxy-mode", type=click.Choice(KUBE_PROXY_MODES), default="iptables", show_default=True)
@name_option
@click.argument("up_args", nargs=-1, type=click.UNPROCESSED)
def up(
    nodes: int,
    pods: int,
    backend: str,
    datapath: str,
    fastpath: str | None,
    family: str,
    network: str,
    kube: Path | None,
    kube_proxy_mode: str,
    name: str,
    up_args: tuple[str, ...],
) -> None:
    """Build a lab and leave it running. What follows `--` goes to every node's `flannel-ebpf up`."""
    signal.signal(signal.SIGTERM, _interrupt)
    programs = kube_programs(kube) if kube is not None else ("", "")
    spec = LabSpec(
        name=name,
        nodes=nodes,
        pods_per_node=pods,
        backend=backend,
        datapath=datapath,
        fastpath=fastpath,
        family=family,
        network=network,
        extra_up_args=up_args,
        kube_apiserver=programs[0],
        kube_proxy=programs[1],
        kube_proxy_mode=kube_proxy_mode,
    )
    try:
        built = Lab.up(spec)
    except KeyboardInterrupt:
        click.echo(f"lab {name}: interrupted, everything it made is removed", err=True)
        raise
    except LabError as error:
        # Its text ends with a log that is gone with the lab: shown in full, not squeezed into one line.
        click.echo(f"lab {name}: {error}", err=True)
        raise click.exceptions.Exit(1) from error
    suffix = "" if name == "lab" else f" --name {name}"
    click.echo(draw(built))
    for address in built.nodes[-1].pods[0].addresses.values():
        click.echo(f"try:    flannel-ebpf lab exec{suffix} n1p1 -- ping -c3 {address}")
    if kube is not None:
        click.echo(f"        flannel-ebpf lab exec{suffix} n1 -- kubectl get nodes")
    click.echo(f"end it: flannel-ebpf lab down{suffix}")


@lab.command()
@name_option
def status(name: str) -> None:
    """Show nodes, pods, leases and processes of a lab."""
    shown = Lab.open(name)
    click.echo(draw(shown))
    server = shown.etcd.process
    click.echo(f"etcd    {f'process {server.pid}' if server else 'NOT RUNNING'}, log {shown.etcd.log}")
    if shown.spec.kube_apiserver:
        api = shown.kube.process
        click.echo(f"api     {f'process {api.pid}' if api else 'NOT RUNNING'}, log {shown.kube.log}")
    for node in shown.nodes:
        click.echo(_node_line(node))


@lab.command("exec", context_settings={"ignore_unknown_options": True})
@name_option
@click.argument("host")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def execute(name: str, host: str, command: tuple[str, ...]) -> None:
    """Run COMMAND in the node or pod HOST: `lab exec n1p1 -- ping -c1 10.1.2.2`."""
    there = Lab.open(name).host(host)
    line = netns.inside(there.ns, command)
    environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    if isinstance(there, Node):
        environ |= there.variables  # so that `lab exec n1 -- flannel-ebpf status` is about that node
    os.execvpe(line[0], line, environ)  # noqa: S606 - an argument list; the terminal becomes the command's


@lab.command()
@name_option
@click.option("--all", "every", is_flag=True, help="Every lab on this machine.")
def down(name: str, every: bool) -> None:
    """Remove a lab with all its processes, namespaces, mounts and files. Doing it twice is fine."""
    for one in labs() if every else [name]:
        found = teardown.remove(one)
        click.echo(f"lab {one}: {'removed' if found else 'there is nothing to remove'}")


def _node_line(node: Node) -> str:
    process = node.daemon
    daemon = f"process {process.pid}" if process else "NOT RUNNING"
    pods = ", ".join(f"{pod.name} {pod.ip}" for pod in node.pods) or "no pods"
    datapath = node.spec.datapath_of(node.name)
    return f"{node.name:<7} {pods}; {daemon}, datapath {datapath}, log {node.log}"


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """Turn SIGTERM into what Ctrl-C does, so that a half-built lab is removed again."""
    raise KeyboardInterrupt
