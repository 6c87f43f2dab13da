"""Real etcd servers that tests can kill, freeze, thaw, restart, wipe and restore; on loopback or in a lab."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from flannel_ebpf.lab import netns
from flannel_ebpf.leases.etcd import EtcdClient, EtcdOptions, Registry
from tests.polls import eventually

HOST = "127.0.0.1"
PORTS = range(24100, 24900)
_claims: list[socket.socket] = []  # of ports, for as long as this process lives

LONG = os.environ.get("FLANNEL_TEST_LONG") == "1"
FROZEN = 60.0 if LONG else 20.0
"""Seconds that a server stays stopped; more than the 15 s in which it must be noticed."""
OUTAGE = 120.0 if LONG else 10.0
"""Seconds that a whole cluster stays away."""


def free_port() -> int:
    """Return a port that nobody listens on and that no test process of this machine has taken."""
    for port in random.sample(PORTS, len(PORTS)):
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0flannel-ebpf-test-port-{port}")
        except OSError:  # another process's, or an earlier one of ours
            claim.close()
            continue
        _claims.append(claim)
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)) != 0:
                return port
    raise AssertionError(f"no free port in {PORTS}")


@dataclass(frozen=True)
class Certs:
    """A certificate authority with a server's and a client's certificate, made by the openssl command."""

    folder: Path

    @classmethod
    def make(cls, folder: Path, host: str = HOST) -> Certs:
        folder.mkdir(parents=True)
        certs = cls(folder)
        certs._openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-days", "2", "-subj", "/CN=test authority", "-keyout", "ca.key", "-out", "ca.pem",
        )  # fmt: skip
        for name in ("server", "client"):
            certs._openssl(
                "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr",
            )  # fmt: skip
            (folder / "ext").write_text(
                f"subjectAltName=IP:{host},DNS:localhost\nextendedKeyUsage=serverAuth,clientAuth\n"
            )
            certs._openssl(
                "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
                "-days", "2", "-extfile", "ext", "-out", f"{name}.pem",
            )  # fmt: skip
        return certs

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True)


class Member:
    """One etcd server process; its ports and data stay the same over restarts."""

    def __init__(self, name: str, folder: Path, scheme: str, host: str) -> None:
        self.name, self.folder = name, folder
        self.client_url = f"{scheme}://{host}:{free_port()}"
        self.peer_url = f"http://{host}:{free_port()}"
        self.process: subprocess.Popen[bytes] | None = None
        self.frozen = False

    @property
    def serves(self) -> bool:
        return self.process is not None and not self.frozen

    @property
    def running(self) -> subprocess.Popen[bytes]:
        assert self.process is not None, f"etcd {self.name} does not run"
        return self.process

    def kill(self) -> None:
        """kill -9."""
        self.running.kill()
        self.running.wait()
        self.process, self.frozen = None, False

    def terminate(self) -> None:
        """Stop as an administrator would."""
        self.running.terminate()
        self.running.wait(10)
        self.process = None

    def freeze(self) -> None:
        """SIGSTOP; returns when every thread has stopped, which the signal alone does not wait for."""
        self.running.send_signal(signal.SIGSTOP)
        self.frozen = True
        threads = Path(f"/proc/{self.running.pid}/task")
        eventually(
            lambda: all(b") T" in (thread / "stat").read_bytes() for thread in threads.iterdir()), "frozen", 2
        )

    def thaw(self) -> None:
        self.running.send_signal(signal.SIGCONT)
        self.frozen = False


class EtcdCluster:
    """`size` members on `certs` (client side TLS; client certificates wanted if `client_auth`).

    `ns` is the network namespace that they run in and `host` their address there; "" is where the test runs.
    """

    def __init__(
        self,
        folder: Path,
        size: int = 1,
        certs: Certs | None = None,
        *,
        client_auth: bool = False,
        options: tuple[str, ...] = (),
        ns: str = "",
        host: str = HOST,
    ) -> None:
        self.folder, self.certs = folder, certs
        self._ns = ns
        self._generation = 0
        self.login = ""
        self._options = list(options)
        if certs:
            self._options += [
                f"--cert-file={certs.path('server.pem')}",
                f"--key-file={certs.path('server.key')}",
            ]
            if client_auth:
                self._options += ["--client-cert-auth", f"--trusted-ca-file={certs.path('ca.pem')}"]
        scheme = "https" if certs else "http"
        self.members = [Member(f"m{number}", folder / f"m{number}", scheme, host) for number in range(size)]

    def __enter__(self) -> EtcdCluster:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        for member in self.members:
            if member.process is not None:
                member.kill()

    @property
    def endpoints(self) -> tuple[str, ...]:
        return tuple(member.client_url for member in self.members)

    def start(self, *members: Member) -> None:
        """Start `members`, or all that do not run, and wait until the cluster serves linearizable reads."""
        for member in members or [it for it in self.members if it.process is None]:
            with (self.folder / f"{member.name}.log").open("ab") as log:
                command = self._inside(self._command(member))
                member.process = subprocess.Popen(command, stdout=log, stderr=log)
        eventually(lambda: self._healthy(members), f"etcd serves; logs in {self.folder}", 20)

    def kill(self) -> None:
        """kill -9 of every member."""
        for member in self.members:
            if member.process is not None:
                member.kill()

    def wipe(self) -> None:
        """Lose all data: what comes up on the same endpoints is empty and has another cluster id."""
        self.kill()
        self._generation += 1
        for member in self.members:
            shutil.rmtree(member.folder)
        self.start()

    def save(self, path: Path) -> None:
        """Take a snapshot, as for a backup."""
        self.ctl("snapshot", "save", str(path), endpoints=self.endpoints[:1])

    def restore(self, path: Path) -> None:
        """Replace all members' data by the backup."""
        self.kill()
        for member in self.members:
            shutil.rmtree(member.folder)
            self.ctl(
                "snapshot", "restore", str(path), f"--name={member.name}", f"--data-dir={member.folder}",
                f"--initial-cluster={self._peers()}", f"--initial-advertise-peer-urls={member.peer_url}",
            )  # fmt: skip
        self.start()

    def ctl(self, *arguments: str, endpoints: tuple[str, ...] | None = None) -> str:
        """Run etcdctl, as an administrator behind our back; fails when it does."""
        endpoints = endpoints or tuple(member.client_url for member in self.members if member.serves)
        command = ["etcdctl", f"--endpoints={','.join(endpoints)}", "--command-timeout=4s"]
        if self.certs:
            command += [f"--cacert={self.certs.path('ca.pem')}"]
            command += [f"--cert={self.certs.path('client.pem')}", f"--key={self.certs.path('client.key')}"]
        if self.login:
            command += [f"--user={self.login}"]
        environment = {**os.environ, "ETCDCTL_API": "3"}
        done = subprocess.run(
            self._inside([*command, *arguments]), env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"etcdctl {arguments}: {done.stderr}"
        return done.stdout

    def enable_auth(self, prefix: str) -> EtcdOptions:
        """Turn auth on with a user that may read and write `prefix`; return that user's options."""
        for command in (
            ["user", "add", "root:rootpw"],
            ["user", "grant-role", "root", "root"],
            ["role", "add", "flannel"],
            ["role", "grant-permission", "flannel", "--prefix=true", "readwrite", prefix],
            ["user", "add", "flannel:secret"],
            ["user", "grant-role", "flannel", "flannel"],
            ["auth", "enable"],
        ):
            self.ctl(*command)
        self.login = "root:rootpw"
        return self.options(username="flannel", password="secret")

    def options(self, *, username: str = "", password: str = "") -> EtcdOptions:
        """What a daemon's flags for this cluster would be."""
        certs = self.certs
        return EtcdOptions(
            self.endpoints,
            keyfile=certs.path("client.key") if certs else "",
            certfile=certs.path("client.pem") if certs else "",
            cafile=certs.path("ca.pem") if certs else "",
            username=username,
            password=password,
        )

    def registry(self, prefix: str = "/coreos.com/network") -> Registry:
        """A registry with a client of its own."""
        return Registry(EtcdClient(self.options()), prefix)

    def _healthy(self, members: tuple[Member, ...]) -> bool:
        endpoints = tuple(member.client_url for member in members) or self.endpoints
        for member in self.members:
            assert member.process is None or member.process.poll() is None, (
                f"etcd {member.name} exited:\n{(self.folder / f'{member.name}.log').read_text()[-2000:]}"
            )
        try:
            for endpoint in endpoints:
                self.ctl("get", "health", endpoints=(endpoint,))
        except AssertionError:
            return False
        return True

    def _inside(self, command: list[str]) -> list[str]:
        return netns.inside(self._ns, command) if self._ns else command

    def _peers(self) -> str:
        return ",".join(f"{member.name}={member.peer_url}" for member in self.members)

    def _command(self, member: Member) -> list[str]:
        return [
            "etcd",
            f"--name={member.name}",
            f"--data-dir={member.folder}",
            f"--listen-client-urls={member.client_url}",
            f"--advertise-client-urls={member.client_url}",
            f"--listen-peer-urls={member.peer_url}",
            f"--initial-advertise-peer-urls={member.peer_url}",
            f"--initial-cluster={self._peers()}",
            f"--initial-cluster-token={self._generation}",
            "--bcrypt-cost=4",
            *self._options,
        ]
