"""Bad input reaches a running node: one clear line, no traceback, and every good peer stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from elftools.elf.constants import SH_FLAGS
from elftools.elf.elffile import ELFFile

from flannel_ebpf.lab import Lab
from flannel_ebpf.lab.node import Node
from tests.netns.labs import MakeLab
from tests.polls import eventually

POISON = {
    "10.1.77.0-24": "this is no JSON",
    "10.1.78.0-24": '["a list"]',
    "10.1.79.0-24": '{"PublicIP":"192.168.64.79","PublicIPv6":null,"BackendType":"wireguard"}',
    "10.1.80.0-24": '{"PublicIP":"192.168.64.80","PublicIPv6":null,"BackendType":"vxlan"}',
    "10.1.81.0-24": '{"PublicIP":"no address","BackendType":"vxlan"}',
    "10.1.82.0-24": '{"PublicIP":"192.168.64.82","BackendType":"vxlan","BackendData":{"VtepMAC":"zz"}}',
    "hello": "world",
    "10.1.83.0-99": '{"PublicIP":"192.168.64.83"}',
}


@pytest.fixture(scope="module")
def lab(make_shared_lab: MakeLab) -> Lab:
    """Two nodes without daemons, which draw no subnet of POISON's; each test starts n1's as it needs it."""
    return make_shared_lab(start_daemons=False, pods_per_node=0, network_config={"SubnetMax": "10.1.70.0"})


@pytest.fixture
def n1(lab: Lab) -> Node:
    node = lab.node("n1")
    node.stop_daemon()
    node.log.unlink(missing_ok=True)
    lab.etcdctl("put", f"{lab.spec.etcd_prefix}/config", lab.spec.config_json())
    return node


def log_of(node: Node, *wanted: str) -> str:
    """Wait until one line of the daemon's log holds every text of `wanted`; return the line."""

    def found() -> str:
        lines = node.daemon_log().splitlines()
        return next((line for line in lines if all(text in line for text in wanted)), "")

    return eventually(found, lambda: f"a line with {wanted} in:\n{node.daemon_log()}", 30)


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ("{", ["/coreos.com/network/config", "JSON"]),
        ('{"Network": "10.1.0.0/33"}', ["Network", "10.1.0.0/33", "IPv4 network such as"]),
        ('{"Network": "10.1.0.0/24", "SubnetLen": 25}', ["SubnetLen", "25", "at least 26"]),
        ('{"Network": "10.1.0.0/16", "SubnetMin": "10.2.0.0"}', ["SubnetMin", "10.2.0.0", "inside Network"]),
    ],
)
def test_a_bad_network_config_is_named_and_waited_for(
    lab: Lab, n1: Node, config: str, wanted: list[str]
) -> None:
    lab.etcdctl("put", f"{lab.spec.etcd_prefix}/config", config)
    n1.start_daemon()
    log_of(n1, "trying again", *wanted)
    assert n1.daemon is not None
    lab.etcdctl("put", f"{lab.spec.etcd_prefix}/config", lab.spec.config_json())
    log_of(n1, "ready:")
    assert "Traceback" not in n1.daemon_log()


def test_a_missing_network_config_is_waited_for(lab: Lab, n1: Node) -> None:
    lab.etcdctl("del", f"{lab.spec.etcd_prefix}/config")
    n1.start_daemon()
    log_of(n1, "trying again", "/coreos.com/network/config", '"Network"')
    lab.etcdctl("put", f"{lab.spec.etcd_prefix}/config", lab.spec.config_json())
    log_of(n1, "ready:")


@pytest.mark.parametrize("backend", ['{"Type": "wireguard"}', '{"Type": "carrier-pigeon"}', "{}"])
def test_an_unknown_backend_ends_the_daemon_as_it_ends_flanneld(lab: Lab, n1: Node, backend: str) -> None:
    config = f'{{"Network": "10.1.0.0/16", "Backend": {backend}}}'
    lab.etcdctl("put", f"{lab.spec.etcd_prefix}/config", config)
    said = n1.run(n1.daemon_command(), check=False)
    assert said.returncode == 1
    assert "Backend.Type" in said.stderr.splitlines()[-1]
    assert "vxlan, host-gw, udp" in said.stderr.splitlines()[-1]


def test_poisoned_leases_are_skipped_and_every_other_peer_stays(lab: Lab, n1: Node) -> None:
    n2 = lab.node("n2")
    n1.start_daemon()
    n2.start_daemon()
    lab.wait_ready()
    for key, value in POISON.items():
        lab.etcdctl("put", f"{lab.spec.etcd_prefix}/subnets/{key}", value)
    for key in POISON:
        log_of(n1, key.removesuffix("-24"), "skipped")
    route = ["ip", "route", "show", str(n2.subnet)]
    assert "flannel.1" in n1.run(route).stdout
    n1.run(["ping", "-c2", "-W10", str(n2.subnet.network_address)])
    for key in POISON:
        lab.etcdctl("del", f"{lab.spec.etcd_prefix}/subnets/{key}")
    n2.stop_daemon()
    assert "Traceback" not in n1.daemon_log()


def no_bpffs(tmp_path: Path) -> list[str]:
    return [f"--bpf-pin-root={tmp_path}/pins"]


def no_objects(tmp_path: Path) -> list[str]:
    return [f"--bpf-objects={tmp_path}"]


EXIT = bytes.fromhex("9500000000000000")
GOTO_32767 = bytes.fromhex("0500ff7f00000000")


def programs_in(path: Path) -> list[tuple[int, int]]:
    """Return where in an object instructions are: elsewhere the same bytes mean something else."""
    with path.open("rb") as file:
        sections = [section.header for section in ELFFile(file).iter_sections()]
    return [(one.sh_offset, one.sh_size) for one in sections if one.sh_flags & SH_FLAGS.SHF_EXECINSTR]


def rejected(tmp_path: Path) -> list[str]:
    """An object whose tc programs the verifier cannot accept: every jump target is broken."""
    source = Path(__file__).parents[3] / "flannel_ebpf/_programs"
    for name in ("datapath.bpf.o", "xdp.bpf.o"):
        image = bytearray((source / name).read_bytes())
        if name.startswith("datapath"):
            for start, size in programs_in(source / name):
                for at in range(start, start + size, 8):
                    if image[at : at + 8] == EXIT:
                        image[at : at + 8] = GOTO_32767
        (tmp_path / name).write_bytes(image)
    return [f"--bpf-objects={tmp_path}"]


@pytest.mark.parametrize(
    ("trouble", "wanted"),
    [(no_bpffs, "mount -t bpf"), (no_objects, "make -C bpf"), (rejected, "jump out of range")],
)
def test_without_bpf_a_node_takes_the_kernel_path_or_ends(
    lab: Lab, n1: Node, tmp_path: Path, trouble: Callable[[Path], list[str]], wanted: str
) -> None:
    arguments = trouble(tmp_path)
    n1.start_daemon(["--datapath=auto", *arguments])
    log_of(n1, "no BPF on this host", wanted)
    log_of(n1, "ready:")
    assert n1.daemon_log().count("no BPF on this host") == 1
    n1.run(["ip", "link", "show", "flannel.1"])
    n1.stop_daemon()
    said = n1.run(n1.daemon_command(["--datapath=ebpf", *arguments]), check=False)
    assert said.returncode == 1
    assert wanted in said.stderr.splitlines()[-1]
    assert "Traceback" not in n1.daemon_log() + said.stderr


@pytest.mark.parametrize("user", ["nobody", "root"])
def test_without_rights_one_line_says_so(lab: Lab, n1: Node, user: str) -> None:
    keep = "-all,+dac_read_search"  # the checkout may be somewhere that nobody else can read
    drop = ["setpriv", f"--bounding-set={keep}", f"--inh-caps={keep}", f"--ambient-caps={keep}"]
    drop += [f"--reuid={user}", "--clear-groups"]
    said = n1.run([*drop, *n1.daemon_command(["--bpf-objects=/usr"])], check=False)
    assert said.returncode == 1
    assert "Traceback" not in said.stderr
    assert said.stderr.splitlines()[-1].startswith("flannel-ebpf: ")
