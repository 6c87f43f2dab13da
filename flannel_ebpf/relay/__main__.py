"""`python -m flannel_ebpf.relay`: the relay process. It needs no daemon and no etcd, only its peers file.

One main process and two workers per queue, one per direction. A worker that ends takes all down with it:
half a relay would be worse than one that is restarted. SIGHUP, or a change of the peers file within a
second, makes the workers read it again; SIGTERM ends the relay and leaves the TUN in place.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from io import FileIO
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from flannel_ebpf.base.errors import FlannelError, KernelError
from flannel_ebpf.kernel.netlink import tun
from flannel_ebpf.relay import peers
from flannel_ebpf.relay.counters import Counters
from flannel_ebpf.relay.forward import UDP_GRO, FromPeers, Refresh, ToPeers
from flannel_ebpf.relay.spec import RelaySpec

log = logging.getLogger("flannel_ebpf.relay")

_SOCKET_BUFFER = 8 << 20
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_PR_SET_PDEATHSIG = 1
_SIGNALS = {signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}


def main() -> int:
    """Run the relay until SIGTERM (0) or a failure (1), which is one line on stderr."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    spec = RelaySpec.parse()
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        return _serve(spec)
    except FlannelError as error:
        log.error("%s", error)
        return 1


def _serve(spec: RelaySpec) -> int:
    table = peers.PeerTable()
    peers_file = spec.folder / "peers.json"
    stamp = _stamp(peers_file)
    table.replace(_read_peers(peers_file))
    sockets = [_open_socket(spec) for _ in range(spec.queues)]
    queues = tun.open_queues(spec.tun, spec.queues)
    tun.configure(spec.tun, spec.mtu, spec.address, spec.network)
    counters = Counters(spec.folder / "counters", 2 * spec.queues)
    workers = []
    for number, (queue, sock) in enumerate(zip(queues, sockets, strict=True)):
        rows = counters.row(2 * number), counters.row(2 * number + 1)
        for loop in _loops(spec, queue, sock, table, rows):
            workers.append(_fork(loop, peers_file, table))
    counters.ready()
    log.info("relaying %s over %s:%d, %d peers", spec.tun, spec.bind, spec.port, len(table))
    return _supervise(peers_file, stamp, workers)


def _loops(
    spec: RelaySpec,
    queue: FileIO,
    sock: socket.socket,
    table: peers.PeerTable,
    rows: tuple[memoryview, memoryview],
) -> list[Callable[[Refresh], None]]:
    """Return the two loops of one queue."""
    to_peers = ToPeers(
        queue,
        sock,
        table,
        rows[0],
        mtu=spec.mtu,
        port=spec.port,
        address=spec.address,
        batch=spec.batch and _can_batch(sock),
    )
    from_peers = FromPeers(queue, sock, table, rows[1], mtu=spec.mtu, source_check=spec.source_check)
    return [to_peers.run, from_peers.run]


def _open_socket(spec: RelaySpec) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        if spec.queues > 1:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SOCKET_BUFFER)
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _SOCKET_BUFFER)
        sock.bind((str(spec.bind), spec.port))
    except OSError as error:
        what = f"UDP socket {spec.bind}:{spec.port}: {error.strerror}"
        raise KernelError(what, error.errno or 0) from error
    return sock


def _can_batch(sock: socket.socket) -> bool:
    """Ask for UDP_GRO (Linux 5.0), which also says that UDP_SEGMENT (4.18) is there.

    An older kernel would ignore the segment size and send a whole batch as one datagram.
    """
    try:
        sock.setsockopt(socket.SOL_UDP, UDP_GRO, 1)
    except OSError:
        log.info("this kernel cannot batch datagrams: one packet a system call")
        return False
    return True


def _fork(loop: Callable[[Refresh], None], path: Path, table: peers.PeerTable) -> int:
    """Run `loop` in a process that ends with this one; return its pid."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    changed = False

    def note(*_: object) -> None:
        nonlocal changed
        changed = True

    def refresh() -> None:
        nonlocal changed
        if changed:
            changed = False
            with contextlib.suppress(FlannelError):  # the main process says so
                table.replace(_read_peers(path))

    signal.signal(signal.SIGHUP, note)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    try:
        loop(refresh)
    except BaseException:  # a forked worker must not unwind into its parent's stack
        log.exception("a worker of the relay failed")
    os._exit(1)


def _supervise(path: Path, stamp: tuple[int, int], workers: list[int]) -> int:
    """Pass changes of the peers file on; return when told to, or when a worker has ended."""
    while True:
        got = signal.sigtimedwait(_SIGNALS, 1.0)
        if got and got.si_signo in (signal.SIGTERM, signal.SIGINT):
            return _end(workers, 0)
        if got and got.si_signo == signal.SIGCHLD:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid:
                log.error("worker %d ended with %d", pid, os.waitstatus_to_exitcode(status))
                workers.remove(pid)
                return _end(workers, 1)
        seen, stamp = stamp, _stamp(path)
        if seen != stamp:
            try:
                _read_peers(path)
            except FlannelError as error:
                log.error("%s; the peers stay as they are", error)
                continue
            for worker in workers:
                os.kill(worker, signal.SIGHUP)


def _end(workers: list[int], code: int) -> int:
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    for worker in workers:
        os.waitpid(worker, 0)
    return code


def _stamp(path: Path) -> tuple[int, int]:
    """Return what changes with every atomic replacement of `path`; zeros while it is not there."""
    try:
        found = path.stat()
    except OSError:
        return (0, 0)
    return (found.st_ino, found.st_mtime_ns)


def _read_peers(path: Path) -> dict[IPv4Network, IPv4Address]:
    try:
        text = path.read_text()
    except OSError as error:
        raise KernelError(f"peers file {path}: {error.strerror}", error.errno or 0) from error
    return peers.decode(text, str(path))


if __name__ == "__main__":
    sys.exit(main())
