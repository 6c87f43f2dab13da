"""An API server in the switch namespace, beside etcd: kube-apiserver, or what takes its command line.

There is no kubelet and no controller: the lab makes the node objects and gives them podCIDRs.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import time
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

from flannel_ebpf.base.errors import LabError
from flannel_ebpf.base.family import Family, Network, family_of
from flannel_ebpf.lab import netns
from flannel_ebpf.lab.command import run
from flannel_ebpf.lab.processes import Process, spawn, tail
from flannel_ebpf.lab.spec import ETCD_ENDPOINT, ETCD_IP, LabSpec, node_ip

PORT = 6443
SERVER = f"https://{ETCD_IP}:{PORT}"
SERVICES: dict[Family, str] = {Family.V4: "10.96.0.0/16", Family.V6: "fd10:96::/112"}
"""Where clusterIPs come from. IPv4's counts in each lab: the server's own service has its family."""
AGENT = "system:serviceaccount:kube-flannel:flannel"
USERS = {
    "admin": ("admin", "system:masters"),
    "flannel": (AGENT, ""),
    "proxy": ("system:kube-proxy", ""),
    "nobody": ("nobody", ""),
}
"""Token -> user and groups. The manifest's ClusterRoleBinding names AGENT."""
RBAC = "/apis/rbac.authorization.k8s.io/v1"
RULES = [
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]},
    {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]},
    {"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]},
]
"""What flannel's ClusterRole allows, and the manifest in deploy/kubernetes."""
CONTENT_TYPES = {"PATCH": "application/strategic-merge-patch+json"}

_AUDIT = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}],
}


def kube_programs(folder: Path) -> tuple[str, str]:
    """Return kube-apiserver and kube-proxy in `folder`, "." for where tools/kube/build.sh puts them.

    Raises LabError when one is missing.
    """
    if folder == Path():
        built = sorted(Path("~/.cache/flannel-ebpf").expanduser().glob("kubernetes-*"))
        folder = built[-1] if built else folder
    found = [folder / "kube-apiserver", folder / "kube-proxy"]
    for program in found:
        if not os.access(program, os.X_OK):
            raise LabError(f"{program} is no program: `make kube` or tools/kube/build.sh builds it")
    return str(found[0]), str(found[1])


class KubeServer:
    """The API server of one lab: its keys, tokens, logs and pid file lie in `<lab>/kube`."""

    def __init__(self, spec: LabSpec) -> None:
        self.spec = spec
        self.ns = spec.switch_ns
        self.folder = spec.kube_folder
        self.log = self.folder / "apiserver.log"
        self.audit_log = self.folder / "audit.log"
        self.pidfile = self.folder / "apiserver.pid"
        self.certificate = self.folder / "certs" / "apiserver.crt"

    @property
    def process(self) -> Process | None:
        """The running server, None when it has ended."""
        return Process.load(self.pidfile)

    def start(self, deadline: float = 60.0) -> None:
        """Start the server and wait until it is ready.

        Raises LabError with the end of its log when it ends or takes longer than `deadline` seconds.
        """
        self.folder.mkdir(exist_ok=True)
        key = self.folder / "service-accounts.key"
        if not key.exists():
            run(["openssl", "genrsa", "-out", str(key), "2048"])
        tokens = [f'{token},{user},{token},"{groups}"' for token, (user, groups) in USERS.items()]
        (self.folder / "tokens.csv").write_text("\n".join(tokens) + "\n")
        (self.folder / "audit.json").write_text(json.dumps(_AUDIT))
        process = spawn(self.ns, self._command(key), log=self.log, pidfile=self.pidfile)
        end = time.monotonic() + deadline
        while not self._ready():
            if not process.alive or time.monotonic() > end:
                raise LabError(f"the API server is not ready; the end of its log:\n{tail(self.log)}")
            time.sleep(0.1)
        for token in USERS:
            (self.folder / f"{token}.kubeconfig").write_text(self.kubeconfig(token))
        (self.folder / "net-conf.json").write_text(self.spec.config_json())
        self._let_agent_in()

    def _command(self, key: Path) -> list[str]:
        return [
            self.spec.kube_apiserver,
            f"--etcd-servers={ETCD_ENDPOINT}",
            f"--bind-address={ETCD_IP}",
            f"--advertise-address={ETCD_IP}",
            f"--secure-port={PORT}",
            f"--cert-dir={self.certificate.parent}",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-cluster-ip-range={','.join(self._service_ranges)}",
            "--authorization-mode=RBAC",
            f"--token-auth-file={self.folder / 'tokens.csv'}",
            "--disable-admission-plugins=ServiceAccount",
            "--allow-privileged=true",
            f"--audit-policy-file={self.folder / 'audit.json'}",
            f"--audit-log-path={self.audit_log}",
        ]

    @property
    def _service_ranges(self) -> list[str]:
        return [SERVICES[family] for family in sorted({Family.V4, *self.spec.families})]

    def _let_agent_in(self) -> None:
        head = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "flannel"}}
        group = {"apiGroup": "rbac.authorization.k8s.io"}
        binding = {
            "roleRef": {**group, "kind": "ClusterRole", "name": "flannel"},
            "subjects": [{**group, "kind": "User", "name": AGENT}],
        }
        self.apply({**head, "kind": "ClusterRole", "rules": RULES}, f"{RBAC}/clusterroles")
        self.apply({**head, "kind": "ClusterRoleBinding", **binding}, f"{RBAC}/clusterrolebindings")

    def request(self, method: str, path: str, body: Any = None, *, token: str = "admin") -> Any:  # noqa: S107 - a lab's
        """Send one request and return the decoded answer; raises LabError with the server's words."""
        code, answer = netns.call_inside(self.ns, lambda: self._send(method, path, body, token))
        if code >= 400:
            raise LabError(f"{method} {path}: {code} {answer.get('message') or answer}")
        return answer

    def apply(self, obj: dict[str, Any], path: str) -> None:
        """Create `obj` in the collection `path`; one of that name that is there already stays."""
        code, answer = netns.call_inside(self.ns, lambda: self._send("POST", path, obj, "admin"))
        if code >= 400 and code != 409:
            raise LabError(f"POST {path}: {code} {answer.get('message')}")

    def add_node(self, name: str) -> None:
        """Make a node object with podCIDRs, as the kubelet and the controller manager do together."""
        self.apply(
            {
                "apiVersion": "v1",
                "kind": "Node",
                # flanneld ends with a panic where there is no annotation at all
                "metadata": {"name": name, "annotations": {"node.alpha.kubernetes.io/ttl": "0"}},
                "spec": {"podCIDR": self.pod_cidrs(name)[0], "podCIDRs": self.pod_cidrs(name)},
            },
            "/api/v1/nodes",
        )
        addresses = [
            {"type": "InternalIP", "address": str(node_ip(name, family))} for family in self.spec.families
        ]
        self.request("PATCH", f"/api/v1/nodes/{name}/status", {"status": {"addresses": addresses}})

    def pod_cidrs(self, name: str) -> list[str]:
        """Return what node `n<number>` gets: the subnet of that number in each network."""
        number = int(name.removeprefix("n"))
        pools: dict[Family, tuple[Network, int]] = {
            Family.V4: (IPv4Network(self.spec.network), self.spec.subnet_len),
            Family.V6: (IPv6Network(self.spec.network_v6), self.spec.subnet_len_v6),
        }
        return [str(_subnet(*pools[family], number)) for family in self.spec.families]

    def kubeconfig(self, token: str) -> str:
        """Return a kubeconfig, in JSON, for the user of `token`."""
        return json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [
                    {
                        "name": "lab",
                        "cluster": {"server": SERVER, "certificate-authority": str(self.certificate)},
                    }
                ],
                "users": [{"name": token, "user": {"token": token}}],
                "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": token}}],
                "current-context": "lab",
            },
            indent=2,
        )

    def requests(self) -> list[dict[str, Any]]:
        """Return what the audit log holds: one event for each request (audit.k8s.io/v1, level Metadata)."""
        lines = self.audit_log.read_text().splitlines() if self.audit_log.exists() else []
        return [json.loads(line) for line in lines]

    def _ready(self) -> bool:
        try:
            return netns.call_inside(self.ns, lambda: self._send("GET", "/readyz", None, "admin"))[0] == 200
        except OSError:
            return False

    def _send(self, method: str, path: str, body: Any, token: str) -> tuple[int, Any]:
        context = ssl.create_default_context(cafile=str(self.certificate))
        connection = http.client.HTTPSConnection(str(ETCD_IP), PORT, timeout=10, context=context)
        try:
            headers = {
                "Authorization": f"Bearer {token}",
                "Content-Type": CONTENT_TYPES.get(method, "application/json"),
            }
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            text = response.read().decode()
        except http.client.HTTPException as error:
            raise ConnectionError(str(error)) from error
        finally:
            connection.close()
        return response.status, json.loads(text) if text.startswith("{") else text


def _subnet(pool: Network, length: int, number: int) -> Network:
    family = family_of(pool)
    return family.network(int(pool.network_address) + (number << (family.bits - length)), length)
