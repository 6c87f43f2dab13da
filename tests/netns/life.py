"""Traffic that notices every lost packet, and waiting with a deadline: for the tests of a node's life."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from flannel_ebpf.base.family import Family
from flannel_ebpf.lab import Node, Pod
from flannel_ebpf.lab.spec import ETCD_ENDPOINT
from tests.polls import eventually

PORT = 7001
RATE = 1000

_RECEIVER = """
import json, os, signal, socket, struct, sys, time
sock = socket.socket(int(sys.argv[2]), socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)
sock.bind(("", int(sys.argv[1])))
sock.settimeout(0.4)
seen, gap, last, ending = set(), 0.0, None, False
def tell(*_):  # by a bare write: asked again at once, print would find itself at work
    said = {"received": len(seen), "highest": max(seen, default=-1), "gap": gap}
    os.write(1, json.dumps(said).encode() + b"\\n")
def end(*_):
    global ending
    ending = True
signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGUSR1, tell)
print("ready", flush=True)
while True:
    try:
        data = sock.recv(100)
    except TimeoutError:
        if ending:  # and everything that was on its way is here
            tell()
            sys.exit()
        continue
    now = time.monotonic()
    gap = max(gap, now - (last or now))
    last = now
    seen.add(struct.unpack("!I", data[:4])[0])
"""

_SENDER = """
import signal, socket, struct, sys, time
sock = socket.socket(int(sys.argv[4]), socket.SOCK_DGRAM)
sock.connect((sys.argv[1], int(sys.argv[2])))
rate, number, refused, going = int(sys.argv[3]), 0, 0, True
def end(*_):
    global going
    going = False
signal.signal(signal.SIGTERM, end)
start = time.monotonic()
while going:
    if number > (time.monotonic() - start) * rate:
        time.sleep(0.0005)
        continue
    try:
        sock.send(struct.pack("!I", number) + bytes(60))
    except OSError:
        refused += 1
    number += 1
print(number, refused, flush=True)
"""

_ECHO = """
import socket, sys
server = socket.create_server(("0.0.0.0", int(sys.argv[1])))
print("ready", flush=True)
peer, _ = server.accept()
peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
while data := peer.recv(4096):
    peer.sendall(data)
"""

_ASKER = """
import json, signal, socket, sys, time
sock = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=60)
sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
going, longest, answers = True, 0.0, 0
def end(*_):
    global going
    going = False
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
while going:
    begun = time.monotonic()
    sock.sendall(bytes(200))
    left = 200
    while left:
        left -= len(sock.recv(left)) or sys.exit("closed")
    longest = max(longest, time.monotonic() - begun)
    answers += 1
    time.sleep(0.005)
print(json.dumps({"answers": answers, "longest": longest}), flush=True)
"""


@dataclass
class Delivery:
    """What became of a stream: packets sent and lost, the longest time in seconds in which none came."""

    receiver: subprocess.Popen[str] = field(repr=False)
    sent: int = 0
    lost: int = 0
    gap: float = 0.0

    def lost_yet(self) -> int:
        """Return how many are lost of those sent before one that arrives from now on."""
        self.more(1)
        now = self._ask()
        return int(now["highest"] + 1 - now["received"])

    def more(self, count: int) -> None:
        """Wait until `count` packets that are sent from now on have come, or others after them."""
        highest = self._ask()["highest"]
        eventually(lambda: self._ask()["highest"] >= highest + count, f"{count} packets arrive", 30)

    def _ask(self) -> dict[str, int]:
        assert self.receiver.stdout
        self.receiver.send_signal(signal.SIGUSR1)
        found: dict[str, int] = json.loads(self.receiver.stdout.readline())
        return found


@dataclass
class Chat:
    """What became of a TCP connection: answers, and the longest wait for one, in seconds."""

    answers: int = 0
    longest: float = 0.0


def _start(pod: Pod, code: str, *arguments: object) -> subprocess.Popen[str]:
    return pod.popen([sys.executable, "-IS", "-c", code, *map(str, arguments)])


def _ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout
    line = process.stdout.readline()
    assert line == "ready\n", line + process.stdout.read()


def _end(process: subprocess.Popen[str]) -> str:
    process.send_signal(signal.SIGTERM)
    return process.communicate(timeout=60)[0]


@contextmanager
def stream(
    source: Pod, target: Pod, port: int = PORT, rate: int = RATE, family: Family = Family.V4
) -> Iterator[Delivery]:
    """Send numbered UDP packets at `rate` a second during the block; the delivery is filled in at its end."""
    receiver = _start(target, _RECEIVER, port, family.af)
    result = Delivery(receiver)
    try:
        _ready(receiver)
        sender = _start(source, _SENDER, target.at(family), port, rate, family.af)
        try:
            result.more(rate // 2)  # flows are admitted before anything is done to them
            yield result
            result.more(rate // 4)
        finally:
            said = _end(sender)
        result.sent = int(said.split()[0])
    finally:
        found = json.loads(_end(receiver))
    result.lost, result.gap = result.sent - found["received"], found["gap"]


@contextmanager
def chat(source: Pod, target: Pod, port: int = PORT) -> Iterator[Chat]:
    """Ask and answer over one TCP connection during the block, which must live until its end.

    How long an answer took at most is for the log: on a busy machine it says nothing of packets.
    """
    result = Chat()
    server = _start(target, _ECHO, port)
    try:
        _ready(server)
        asker = _start(source, _ASKER, target.ip, port)
        try:
            _ready(asker)
            yield result
        finally:
            said = _end(asker)
        found = json.loads(said)
        result.answers, result.longest = found["answers"], found["longest"]
        assert result.answers > 0
    finally:
        server.kill()
        server.communicate()


def ready(node: Node, mark: int = 0) -> None:
    """Wait until the daemon says that it is ready, after the first `mark` characters of its log."""
    eventually(
        lambda: "ready: subnet" in node.daemon_log()[mark:],
        lambda: f"{node.name} is ready; its log ends with\n{node.log_tail()}",
        30,
    )


def restart(node: Node, *extra_args: str, kill: bool = False) -> str:
    """Stop or kill the daemon, start it with other options, return what it logged until it was ready.

    Packets go on meanwhile.
    """
    mark = len(node.daemon_log())
    if kill:
        node.kill_daemon()
    else:
        node.stop_daemon()
    node.start_daemon(extra_args)
    ready(node, mark)
    return node.daemon_log()[mark:]


def command(node: Node, name: str, *arguments: str) -> list[str]:
    """Return `flannel-ebpf NAME` for this node, as an operator would give it."""
    places = (
        f"--etcd-endpoints={ETCD_ENDPOINT}",
        f"--etcd-prefix={node.spec.etcd_prefix}",
        f"--subnet-file={node.subnet_file}",
        f"--state-dir={node.state_dir}",
        f"--bpf-pin-root={node.pin_root}",
    )
    return [sys.executable, "-m", "flannel_ebpf", name, *places, *arguments]


def tell(node: Node, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `flannel-ebpf NAME` for this node, whatever comes of it."""
    done = node.run(command(node, name, *arguments), check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def flannel(node: Node, name: str, *arguments: str) -> str:
    """Run `flannel-ebpf down` or `status` for this node; return what it says."""
    done = tell(node, name, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr
