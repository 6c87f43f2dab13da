"""A real Prometheus scrapes a node while iperf3 sends through the overlay; its totals are iperf3's."""

from __future__ import annotations

import json
import subprocess
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest

from flannel_ebpf.lab import Lab, LabSpec, netns
from tests.hosts.machine import TOP
from tests.polls import eventually

PORT = 9090
LISTEN = "--metrics-listen=0.0.0.0:9100"
IP_AND_UDP = 28


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    spec = LabSpec(name="prom", nodes=2, pods_per_node=1, datapath="ebpf", extra_up_args=(LISTEN,))
    subprocess.run([TOP / "tools/setup_packages.sh", "prometheus"], check=True)
    with Lab.up(spec) as made:
        yield made


@pytest.fixture(scope="module")
def prometheus(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The lab with a Prometheus beside its etcd, which scrapes every second and knows our alert rules."""
    folder = tmp_path_factory.mktemp("prometheus")
    nodes = [f"{node.ip}:9100" for node in lab.nodes]
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(TOP / "deploy/prometheus/alerts.yml")],
        "scrape_configs": [{"job_name": "flannel-ebpf", "static_configs": [{"targets": nodes}]}],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with subprocess.Popen(
        netns.inside(lab.spec.switch_ns, command), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        eventually(lambda: len(asked(lab, "up == 1")) == 2, "both nodes are scraped", 60)
        yield lab
        process.terminate()


def asked(lab: Lab, query: str) -> list[dict[str, object]]:
    """Return what Prometheus answers to an instant query."""
    url = f"http://127.0.0.1:{PORT}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    script = f"import urllib.request; print(urllib.request.urlopen({url!r}).read().decode())"
    inside = netns.inside(lab.spec.switch_ns, ["python3", "-c", script])
    done = subprocess.run(inside, capture_output=True, text=True, check=False)
    found: list[dict[str, object]] = json.loads(done.stdout)["data"]["result"] if done.stdout else []
    return found


def total(lab: Lab, query: str) -> float:
    found = asked(lab, query)
    return float(found[0]["value"][1]) if found else 0.0  # type: ignore[index]  # Prometheus' own JSON


def test_bytes_are_iperf3s_within_one_percent(prometheus: Lab) -> None:
    lab = prometheus
    one, other = lab.pods
    labels = f"{{direction='tx',instance='{lab.node('n1').ip}:9100'}}"
    sent = f"sum(flannel_ebpf_peer_bytes_total{labels})"
    beside = f"sum(flannel_ebpf_kernel_path_bytes_total{labels})"
    before = total(lab, sent), total(lab, beside)
    other.popen(["iperf3", "-s", "-1"])
    eventually(lambda: other.run(["ss", "-ltn"]).stdout.count(":5201"), "iperf3 listens")
    udp = ["iperf3", "-c", str(other.ip), "-u", "-b", "300M", "-l", "1400", "-t", "8", "--json"]
    result = json.loads(one.run(udp).stdout)["end"]["sum"]
    expected = result["packets"] * (1400 + IP_AND_UDP)

    def counted() -> float:
        return total(lab, sent) - before[0] + total(lab, beside) - before[1]

    eventually(lambda: counted() > expected * 0.99, lambda: f"{counted()} of {expected}", 20)
    assert counted() == pytest.approx(expected, rel=0.01)
    assert total(lab, sent) - before[0] > 0.95 * expected  # nearly all of it by BPF


@pytest.mark.parametrize(
    "name", ["passes_total", "etcd_requests_total", "lease_expires_in_seconds", "build_info"]
)
def test_the_control_plane_is_there_too(prometheus: Lab, name: str) -> None:
    assert asked(prometheus, f"flannel_ebpf_{name}")


def test_the_alerts_are_loaded_and_silent_on_a_healthy_cluster(prometheus: Lab) -> None:
    assert asked(prometheus, "ALERTS{alertstate='firing'}") == []


@pytest.mark.parametrize("command", [["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]])
def test_promtool_is_content(command: list[str], lab: Lab) -> None:
    folder = Path(TOP / "deploy/prometheus")
    done = subprocess.run(["promtool", *command], cwd=folder, capture_output=True, text=True, check=False)
    assert "SUCCESS" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0, done.stdout + done.stderr
