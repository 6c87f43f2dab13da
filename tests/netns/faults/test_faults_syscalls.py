"""System calls of the running daemon that fail, each kind alone: it goes on, and heals what it missed."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from flannel_ebpf.lab import Lab, Node
from tests.netns.labs import MakeLab
from tests.polls import eventually

LONG = bool(os.environ.get("FLANNEL_TEST_LONG"))

FEW = [
    "socket:EMFILE",
    "sendto:ENOBUFS",
    "recvfrom:ENOMEM",
    "bpf:EPERM",
    "openat:EACCES",
    "pipe2:EMFILE",
    "getdents64:EIO",
    "newfstatat:EIO",
    "write:ENOSPC",
    "vfork:EAGAIN",
    "poll:ENOMEM",
]
MANY = [
    *("sendto:ENOMEM", "socket:ENOMEM", "openat:EMFILE", "openat:ENFILE", "openat:EIO", "read:EIO"),
    *("newfstatat:EACCES", "bind:EADDRINUSE", "ioctl:EPERM", "recvfrom:ENOBUFS", "bpf:ENOMEM", "bpf:EBUSY"),
    *("bpf:EAGAIN", "write:EIO", "sendmsg:ENOBUFS", "recvmsg:ENOBUFS", "rename:EIO", "clone3:EAGAIN"),
    *("clone:EAGAIN", "mmap:ENOMEM", "wait4:ECHILD", "getrandom:EAGAIN", "statx:EIO", "mkdir:EROFS"),
    *("unlink:EROFS", "setsockopt:EPERM", "fcntl:EMFILE", "select:ENOMEM", "pselect6:ENOMEM"),
]


@pytest.fixture(scope="module")
def lab(make_shared_lab: MakeLab) -> Lab:
    return make_shared_lab(datapath="ebpf", pods_per_node=1, extra_up_args=("--ip-masq",))


def right(node: Node, peer: Node) -> bool:
    """Whether the device, the way to the peer and the masquerading are as they should be."""
    [link] = json.loads(node.run(["ip", "-json", "link", "show", "flannel.1"], check=False).stdout or "[{}]")
    routes = node.run(["ip", "route", "show", "proto", "251"]).stdout
    rules = node.run(["iptables-save", "-t", "nat"]).stdout
    return link.get("mtu") == node.mtu and str(peer.subnet) in routes and "MASQUERADE" in rules


@pytest.mark.parametrize("fault", [*FEW, *MANY] if LONG else FEW)
def test_no_failing_call_ends_the_daemon(lab: Lab, fault: str) -> None:
    node, peer = lab.nodes
    eventually(lambda: right(node, peer), "all is right before")
    daemon, before = node.daemon, len(node.daemon_log())
    assert daemon
    call, error = fault.split(":")
    inject = ("-e", f"trace={call}", "-e", f"inject={call}:error={error}:when=1+")
    command = ["strace", "-f", "-qq", "-o", "/dev/null", *inject, "-p", str(daemon.pid)]
    strace = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        eventually(lambda: _traced(daemon.pid), "strace is at it")
        node.run(["ip", "link", "set", "flannel.1", "mtu", "1400"])
        node.run(["ip", "route", "flush", "proto", "251"])
        node.run(["iptables", "-t", "nat", "-F", "FLANNEL-POSTRTG"])
        with pytest.raises(subprocess.TimeoutExpired):
            strace.wait(1.5)  # some passes fail meanwhile; strace ends with what it traces
    finally:
        # Asked to end, strace waits for each thread in turn; one inside vfork() waits for a child that strace
        # has stopped, for ever. The kernel lets all of them go when strace is killed.
        strace.kill()
        strace.wait()
    eventually(lambda: right(node, peer), "what it missed is healed", 30)
    assert node.daemon is not None
    assert node.daemon.pid == daemon.pid, "it was never another one"
    assert "Traceback" not in node.daemon_log()[before:]


def _traced(pid: int) -> bool:
    status = open(f"/proc/{pid}/status").read()  # noqa: SIM115 - read at once
    return "TracerPid:\t0\n" not in status
