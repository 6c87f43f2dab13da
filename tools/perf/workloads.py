"""What is measured: each workload drives traffic between two ends and returns one or more figures."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flannel_ebpf.base.errors import LabError
from flannel_ebpf.base.family import Family
from perf import proof
from perf.ends import CLIENT_CORE, SERVER_CORE, Ends

HERE = Path(__file__).parent
WARM_UP = 0.3
"""Seconds at the start of a measurement that are not counted: slow start, admission of the flow."""

IPERF, TCP_ECHO, UDP_ECHO, CRR, UDP_CRR, SINK, HTTP, REDIS = 5201, 11111, 11112, 7000, 7001, 9000, 8080, 6379
SINK_PORTS = 100
MANY_FLOWS = (SINK_PORTS, 100)
"""Ports and sources: 10,000 flows."""
CRR_WORKERS = 8
HANDSHAKES = 0.25
"""Of a short connection the kernel carries opening and end."""
CONNECTIONS = 32
FIXED_RATE = "8G"
REDIS_REQUESTS = 50_000
PAGE = 1024

Figures = dict[str, float]
Measure = Callable[[Ends, int], float]
"""Drive traffic for so many seconds and return the one figure."""


@dataclass(frozen=True)
class Workload:
    """`run(ends, seconds)` returns a figure for every name in `units`.

    `admitted`: the share of its packets that `flows` carries at least. `lower`: less is better.
    """

    name: str
    text: str
    units: dict[str, str]
    run: Callable[[Ends, int], Figures]
    admitted: float = proof.ENOUGH
    lower: bool = False


def build_generator(folder: Path, family: Family = Family.V4) -> Path:
    """Compile traffic.c for a family into `folder`; raises LabError with the compiler's words."""
    program = folder / "traffic"
    defines = ["-DIPV6"] if family is Family.V6 else []
    command = ["cc", "-O2", *defines, "-o", str(program), str(HERE / "traffic.c")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"traffic.c does not compile: {done.stderr[-500:]}")
    return program


def start_servers(ends: Ends, folder: Path) -> None:
    """Start one server for every workload; idle ones cost nothing. `folder` holds the compiled generator."""
    home = folder / ends.lab.spec.name
    home.mkdir()
    (home / "nginx.conf").write_text(_nginx(home))
    traffic = str(folder / "traffic")
    any_address = ["-i", "0.0.0.0"]  # noqa: S104 - inside its namespace
    redis = ["redis-server", "--port", str(REDIS), "--save", "", "--protected-mode", "no", "--dir", str(home)]
    ends.serve(["iperf3", "--server"], IPERF)
    if ends.family is Family.V6:  # which sockperf of Debian 12 does not know
        ends.serve([traffic, "rr-server", str(TCP_ECHO)], TCP_ECHO)
    else:
        ends.serve(["sockperf", "server", "--tcp", *any_address, "-p", str(TCP_ECHO)], TCP_ECHO)
        ends.serve(["sockperf", "server", *any_address, "-p", str(UDP_ECHO)], UDP_ECHO)
    ends.serve([traffic, "crr-server", str(CRR)], CRR)
    ends.serve([traffic, "udp-crr-server", str(UDP_CRR)], UDP_CRR)
    ends.serve([traffic, "sink", str(SINK), str(SINK_PORTS)], SINK + SINK_PORTS - 1)
    ends.serve(["nginx", "-p", str(home), "-c", str(home / "nginx.conf"), "-e", "stderr"], HTTP)
    ends.serve(redis, REDIS)


def workloads(folder: Path, family: Family = Family.V4) -> dict[str, Workload]:
    """Return all workloads by name, in the order of the table. `folder` holds the compiled generator."""
    traffic = str(folder / "traffic")
    if family is Family.V6:
        asks = _single("tcp_rr", "own generator, 64 B", "k/s", _crr(traffic, "rr", TCP_ECHO, 1, SERVER_CORE))
        every_of_v4 = {name: one for name, one in workloads(folder).items() if name != "udp_rr"}
        return {**every_of_v4, "tcp_rr": asks}
    every = (
        _single("tcp_stream", "iperf3, 1 flow", "Gbit/s", _tcp_stream(1)),
        _single("tcp_stream_8", "iperf3, 8 flows", "Gbit/s", _tcp_stream(8)),
        _single("udp_pps", "own generator, 64 B, one flow", "kpps", _flood(traffic, 64)),
        _single("udp_stream", "own generator, 1400 B, one flow", "Gbit/s", _flood(traffic, 1400)),
        _single("tcp_rr", "sockperf, 64 B request and response", "k/s", _round_trips(TCP_ECHO, "--tcp")),
        _single("udp_rr", "sockperf, 64 B request and response", "k/s", _round_trips(UDP_ECHO)),
        _single(
            "tcp_crr", "connect, request, response; 8 at a time", "k/s", _crr(traffic, "crr", CRR), HANDSHAKES
        ),
        _single(
            "udp_crr",
            "request, response, from a new port each; 8 at a time",
            "k/s",
            _crr(traffic, "udp-crr", UDP_CRR),
            0,
        ),
        _single("flows_10k", "own generator, 64 B, 10,000 flows", "kpps", _flood(traffic, 64, *MANY_FLOWS)),
        Workload(
            "cpu_per_gbit",
            f"iperf3 at {FIXED_RATE}bit/s: CPU time of both ends, and softirq alone",
            {"cpu_per_gbit": "ms/Gbit", "softirq_per_gbit": "ms/Gbit"},
            _cpu,
            lower=True,
        ),
        _single("http", "nginx and wrk, 1 KB, kept connections", "k/s", _http()),
        _single(
            "http_close",
            "nginx and wrk, 1 KB, a connection each",
            "k/s",
            _http("Connection: close"),
            HANDSHAKES,
        ),
        _single("redis", "redis-benchmark GET, 32 connections", "k/s", _redis),
    )
    return {one.name: one for one in every}


QUICK = ("tcp_stream", "udp_pps", "tcp_rr", "tcp_crr", "flows_10k", "http")


def _single(name: str, text: str, unit: str, run: Measure, admitted: float = proof.ENOUGH) -> Workload:
    """Return a workload with one figure, which has the workload's name."""
    return Workload(name, text, {name: unit}, lambda ends, seconds: {name: run(ends, seconds)}, admitted)


def _tcp_stream(flows: int) -> Measure:
    def run(ends: Ends, seconds: int) -> float:
        command = ["iperf3", "-c", ends.to, "-P", str(flows), "-t", str(seconds), "-i", "0.1", "-J"]
        report = json.loads(ends.drive(command))
        intervals: list[dict[str, float]] = [one["sum"] for one in report["intervals"]]
        counted = [one for one in intervals if one["start"] >= WARM_UP - 0.05]
        bits = 8 * sum(one["bytes"] for one in counted)
        return bits / sum(one["seconds"] for one in counted) / 1e9

    return run


def _round_trips(port: int, *protocol: str) -> Measure:
    """Request and response, both ends on one core: else most of the time is a core's wake-up by the other."""

    def run(ends: Ends, seconds: int) -> float:
        command = ["sockperf", "ping-pong", *protocol, "-i", ends.to, "-p", str(port), "-m", "64"]
        text = ends.drive([*command, "-t", str(seconds)], core=SERVER_CORE)
        # sockperf leaves its first 400 ms and last 50 ms out of these.
        found = re.search(
            r"Valid Duration\] RunTime=([\d.]+) sec; SentMessages=\d+; ReceivedMessages=(\d+)", text
        )
        if not found:
            raise LabError(f"sockperf said nothing of its valid duration: {text[-300:]}")
        return int(found[2]) / float(found[1]) / 1e3

    return run


def _crr(traffic: str, what: str, port: int, workers: int = CRR_WORKERS, core: str = CLIENT_CORE) -> Measure:
    def run(ends: Ends, seconds: int) -> float:
        with ends.driving([traffic, what, ends.to, str(port), str(workers)], core) as client:
            time.sleep(WARM_UP + seconds)
            client.terminate()
            output = client.stdout
            assert output is not None  # noqa: S101 - `driving` asks for it
            lines = [line.split() for line in output.read().splitlines()]
        samples = [(float(at), int(done)) for at, done in lines if float(at) >= WARM_UP]
        (start, before), (end, after) = samples[0], samples[-1]
        return (after - before) / (end - start) / 1e3

    return run


def _flood(traffic: str, size: int, ports: int = 1, sources: int = 1) -> Measure:
    """Datagrams that the server reads: kpps of small ones, Gbit/s of the payload of large ones."""
    warm_up = WARM_UP if ports == 1 else 2.0  # each flow needs its first dozen packets
    scale = 1e3 if size < PAGE else 1e9 / (8 * size)

    def run(ends: Ends, seconds: int) -> float:
        command = [traffic, "flood", ends.to, str(SINK), str(size), str(ports), str(sources)]
        with ends.driving(command):
            time.sleep(warm_up)
            ends.mark()
            start, before = time.monotonic(), ends.udp_received()
            time.sleep(seconds)
            received = ends.udp_received() - before
            return received / (time.monotonic() - start) / scale

    return run


def _cpu(ends: Ends, seconds: int) -> Figures:
    """CPU time over the bits that reached the server.

    All of it: what client and server ran, exact to the nanosecond; their cores handle the packets in softirq
    on their account. Softirq alone is sampled by the timer tick, so the pacing must not be in step with it.
    """
    command = ["iperf3", "-c", ends.to, "-b", FIXED_RATE, "--pacing-timer", "937", "-t", "60"]
    with ends.driving(command) as client:
        time.sleep(WARM_UP)
        pids = [client.pid, *ends.servers("iperf3")]
        ran, softirq, bits = _ran(pids), _softirq(), _received_bits(ends)
        time.sleep(2 * seconds)
        ran, softirq, bits = _ran(pids) - ran, _softirq() - softirq, _received_bits(ends) - bits
    return {"cpu_per_gbit": ran * 1e9 / bits, "softirq_per_gbit": softirq * 1e9 / bits}


def _ran(pids: list[int]) -> float:
    """Milliseconds that processes have run so far."""
    return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in pids) / 1e6


def _softirq() -> float:
    """Milliseconds that all cores have spent in softirq so far."""
    return 10 * float(Path("/proc/stat").read_text().split()[7])


def _received_bits(ends: Ends) -> int:
    line = next(
        line for line in ends.net(ends.server, "dev").splitlines() if line.strip().startswith("eth0:")
    )
    return 8 * int(line.partition(":")[2].split()[0])


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _http(*headers: str) -> Measure:
    def run(ends: Ends, seconds: int) -> float:
        extra = [word for header in headers for word in ("-H", header)]
        command = [
            "wrk",
            "-t1",
            f"-c{CONNECTIONS}",
            f"-d{seconds}",
            *extra,
            f"http://{_host(ends.to)}:{HTTP}/",
        ]
        text = ends.drive(command)
        found = re.search(r"Requests/sec:\s*([\d.]+)", text)
        if not found or "Non-2xx" in text:
            raise LabError(f"wrk got no good answers: {text[-300:]}")
        return float(found[1]) / 1e3

    return run


def _redis(ends: Ends, _seconds: int) -> float:
    command = ["redis-benchmark", "-h", ends.to, "-p", str(REDIS), "-t", "get", "-c", str(CONNECTIONS)]
    text = ends.drive([*command, "-n", str(REDIS_REQUESTS), "--csv"])
    return float(text.strip().splitlines()[-1].split(",")[1].strip('"')) / 1e3


def _nginx(home: Path) -> str:
    return f"""
master_process off; daemon off; pid {home}/nginx.pid; error_log stderr crit;
events {{ worker_connections 1024; }}
http {{
    access_log off; keepalive_requests 100000000;
    client_body_temp_path {home}; proxy_temp_path {home}; fastcgi_temp_path {home};
    uwsgi_temp_path {home}; scgi_temp_path {home};
    server {{
        listen {HTTP} backlog=4096; listen [::]:{HTTP} backlog=4096;
        location / {{ return 200 "{"x" * PAGE}"; }}
    }}
}}
"""
