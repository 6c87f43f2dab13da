"""What the tables say of a cluster whose traffic is known."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from flannel_ebpf.lab import Lab
from tests.netns.diagnose.commands import asked, ours
from tests.netns.labs import MakeLab
from tests.polls import eventually


@pytest.fixture(scope="module")
def lab(make_shared_lab: MakeLab) -> Lab:
    made = make_shared_lab(nodes=2, datapath="ebpf", fastpath="flows", pods_per_node=1)
    one, other = made.pods
    one.run(["ping", "-q", "-i", "0.05", "-c", "30", str(other.ip)])
    return made


def test_peers_count_what_bpf_carried(lab: Lab) -> None:
    (peer,) = asked(lab.node("n1"), "peers")
    assert (peer["subnet"], peer["public_ip"]) == (str(lab.node("n2").subnet), str(lab.node("n2").ip))
    assert peer["tx_packets"] > 10
    assert peer["tx_bytes"] == 84 * peer["tx_packets"]
    assert str(lab.node("n2").subnet) in ours(lab.node("n1"), "peers").stdout


def test_a_node_without_bpf_has_its_peers_from_the_kernel(make_lab: MakeLab) -> None:
    lab = make_lab(nodes=2, datapath="kernel", pods_per_node=0)
    (peer,) = asked(lab.node("n1"), "peers")
    assert (peer["public_ip"], peer["mode"], peer["tx_packets"]) == (str(lab.node("n2").ip), "kernel", 0)
    assert ours(lab.node("n1"), "probe").returncode == 0
    assert ours(lab.node("n1"), "flows").returncode == 3  # there are no maps to look into


def test_flows_and_pods_are_the_ones_there(lab: Lab) -> None:
    one, other = lab.pods
    (flow,) = asked(lab.node("n1"), "flows", "--proto=icmp")
    assert (flow["pod"], flow["remote"]) == (str(one.ip), str(other.ip))
    assert (flow["sends_by_bpf"], flow["hears_by_bpf"]) == (True, True)
    assert asked(lab.node("n1"), "flows", f"--peer={one.ip}") == []
    (pod,) = asked(lab.node("n1"), "pods")
    assert (pod["ip"], pod["device"], pod["path"], pod["why"]) == (str(one.ip), one.veth, "bpf", "")


def test_leases_are_everybodys_with_their_time_to_live(lab: Lab) -> None:
    found = asked(lab.node("n1"), "leases")["leases"]
    assert {one["subnet"]: one["own"] for one in found} == {
        str(lab.node("n1").subnet): True,
        str(lab.node("n2").subnet): False,
    }
    assert all(0 < one["expires_in"] <= 86_400 for one in found)


def test_maps_are_shown_field_by_field(lab: Lab) -> None:
    found = json.loads(ours(lab.node("n1"), "maps", "vteps", "--json").stdout)["fl_vteps"]
    assert {one["key"]["addr"]: one["value"]["addr"] for one in found} == {
        str(lab.node("n2").ip): str(lab.node("n2").subnet.network_address)
    }
    assert "fast_vxlan: " in ours(lab.node("n1"), "maps", "reasons").stdout


def test_top_shows_rates(lab: Lab) -> None:
    one, other = lab.pods
    one.popen(["ping", "-q", "-i", "0.02", "-w", "60", str(other.ip)])

    def busy() -> bool:
        rows = asked(lab.node("n1"), "top", "--count=1", "--interval=0.5")
        return any(
            row["tx_packets"] > 1 for row in rows["peers"] if row["subnet"] == str(lab.node("n2").subnet)
        )

    assert eventually(busy, "a peer with a rate", 30)


def test_dump_is_an_archive_for_its_owner_alone(lab: Lab, tmp_path: Path) -> None:
    file = tmp_path / "case.tar.gz"
    assert ours(lab.node("n1"), "dump", str(file)).returncode == 0
    assert file.stat().st_mode & 0o777 == 0o600
    with tarfile.open(file) as archive:
        names = archive.getnames()
    for part in ("case/flannel-ebpf/doctor", "case/host/ip-address", "case/files/subnet.env"):
        assert part in names


def test_an_unknown_peer_is_named(lab: Lab) -> None:
    done = ours(lab.node("n1"), "probe", "10.9.9.9")
    assert (done.returncode, done.stdout) == (2, "")
    assert "'10.9.9.9' is no peer of this node" in done.stderr


@pytest.mark.parametrize("command", ["doctor", "maps reasons"])
def test_a_closed_pipe_and_missing_rights_are_no_trace(lab: Lab, command: str) -> None:
    line = [sys.executable, "-m", "flannel_ebpf", *command.split()]
    node = lab.node("n1")
    told = [f"{name}={value}" for name, value in node.variables.items()]
    piped = node.run(["bash", "-c", f"env {' '.join(told)} {' '.join(line)} | true"], check=False)
    assert "Traceback" not in piped.stderr
    plain = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "env", *told, *line]
    weak = node.run(plain, check=False)
    assert isinstance(weak, subprocess.CompletedProcess)
    assert "Traceback" not in weak.stderr
    assert weak.returncode in (0, 1, 3)  # root without rights may still read what it owns
