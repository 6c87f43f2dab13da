"""Runs a manifest's container on a lab's node as a runtime would: its own root, mounts, pids, capabilities.

The root is this host's, under an overlay, with our programs where the image has them.
Volumes lie in the node's folder; what is the host's own (bpffs, /proc/sys/net) is the node's. As with a
container that is not privileged, /proc/sys and /sys can only be read.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flannel_ebpf.lab import Lab, Node, processes
from flannel_ebpf.lab.command import run
from flannel_ebpf.lab.kube_server import PORT
from flannel_ebpf.lab.processes import Process
from flannel_ebpf.lab.spec import ETCD_IP

TOP = Path(__file__).parents[2]
ACCOUNT = "/run/secrets/kubernetes.io/serviceaccount"  # /var/run leads there
OWN = {"/sys/fs/bpf", "/proc/sys/net", "/etc/machine-id"}
"""Host paths that are not below the node's folder."""
USUAL = frozenset(
    {
        *("CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP"),
        *("SETPCAP", "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE"),
    }
)
"""What containerd gives a container that asks for nothing."""

_ENTER = """
set -e
root=$1 mounts=$2 shift 2
mount --make-rprivate /
mount -t overlay overlay -o "lowerdir=/,upperdir=$root.upper,workdir=$root.work" "$root"
mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/run"
while read -r source target; do
    mkdir -p "$(dirname "$root$target")"
    if [ -d "$source" ]; then mkdir -p "$root$target"; else touch "$root$target"; fi
    mount --bind "$source" "$root$target"
done < "$mounts"
exec chroot "$root" env -i "$@"
"""


class Container:
    """One container of a pod template, on one node; `template` is the DaemonSet's `spec.template.spec`."""

    def __init__(
        self, lab: Lab, node: Node, template: Mapping[str, Any], container: Mapping[str, Any]
    ) -> None:
        self.lab, self.node, self.spec = lab, node, container
        self.folder = node.folder / f"container-{container['name']}"
        self.log = self.folder / "log"
        self.host = node.folder / "host"
        self._volumes = {one["name"]: one for one in template["volumes"]}
        self._process: Process | None = None

    def run(self) -> None:
        """Run it to its end, as an init container; raises LabError when it fails."""
        run(self._line(), timeout=60)

    def start(self) -> Process:
        """Start it and return at once."""
        self._process = processes.spawn(self.node.ns, self._line(), log=self.log, pidfile=self.folder / "pid")
        return self._process

    def stop(self, grace: float = 30.0) -> None:
        """End it as the kubelet does: SIGTERM for its process 1, and after the grace period SIGKILL."""
        if self._process and self._process.alive:
            pid = self._process.pid
            for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                os.kill(int(child), signal.SIGTERM)
            self._process.wait(grace)
            processes.end([self._process], 0)

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def _line(self) -> list[str]:
        root = self.folder / "root"
        for folder in (root, Path(f"{root}.work"), self.host):
            folder.mkdir(parents=True, exist_ok=True)
        self._install(Path(f"{root}.upper"))
        mounts = self.folder / "mounts"
        mounts.write_text("".join(f"{source} {target}\n" for source, target in self._mounts()))
        return [
            *("nsenter", f"--net=/run/netns/{self.node.ns}", "--"),
            *("unshare", "--mount", "--pid", "--fork", "--kill-child=SIGTERM"),
            *("sh", "-c", _ENTER, "sh", str(root), str(mounts)),
            *(f"{name}={value}" for name, value in self._environment().items()),
            *self._confined(),
            *self.spec.get("command", []),
            *self.spec.get("args", []),
        ]

    def _install(self, root: Path) -> None:
        """Put our programs where the image has them."""
        ours = f"#!/bin/sh\nexec {sys.executable} -m flannel_ebpf"
        for path, text in (
            ("opt/bin/flanneld", f'{ours} up "$@"\n'),
            ("opt/bin/install-conf", (TOP / "deploy/image/install-conf").read_text()),
            ("usr/bin/flannel-ebpf", f'{ours} "$@"\n'),
        ):
            program = root / path
            program.parent.mkdir(parents=True, exist_ok=True)
            program.write_text(text)
            program.chmod(0o755)

    def _mounts(self) -> list[tuple[Path, str]]:
        """Return what is mounted where: the container's volumes, and the service account's."""
        found = [(self._account(), ACCOUNT)]
        found += [(self._source(one["name"]), one["mountPath"]) for one in self.spec.get("volumeMounts", [])]
        return found

    def _source(self, name: str) -> Path:
        volume = self._volumes[name]
        if "configMap" in volume:
            return self.folder.parent / "config" / volume["configMap"]["name"]
        path = volume["hostPath"]["path"]
        if path == "/sys/fs/bpf":
            return self.node.pin_root
        if path in OWN:
            return Path(path)
        place = Path(f"{self.host}{path}")
        if volume["hostPath"].get("type", "").startswith("File"):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()
        else:
            place.mkdir(parents=True, exist_ok=True)
        return place

    def _account(self) -> Path:
        """Return the folder of a service account's files, which the kubelet mounts."""
        folder = self.folder / "account"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "token").write_text("flannel")
        (folder / "ca.crt").write_bytes(self.lab.kube.certificate.read_bytes())
        return folder

    def _environment(self) -> dict[str, str]:
        """Return the container's variables, and those of the service `kubernetes`."""
        fields = {
            "spec.nodeName": self.node.name,
            "metadata.name": f"kube-flannel-{self.node.name}",
            "metadata.namespace": "kube-flannel",
        }
        found = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "KUBERNETES_SERVICE_HOST": str(ETCD_IP),
            "KUBERNETES_SERVICE_PORT": str(PORT),
        }
        for one in self.spec.get("env", []):
            found[one["name"]] = one.get("value") or fields[one["valueFrom"]["fieldRef"]["fieldPath"]]
        return found

    def _confined(self) -> list[str]:
        """Return the command that leaves the container's capabilities: the usual ones unless dropped."""
        context = self.spec.get("securityContext", {})
        asked = context.get("capabilities", {})
        kept = set() if "ALL" in asked.get("drop", []) else set(USUAL)
        kept |= set(asked.get("add", []))
        bounds = ",".join(f"+{name.lower()}" for name in sorted(kept))
        privileges = ["--no-new-privs"] if context.get("allowPrivilegeEscalation") is False else []
        return ["setpriv", f"--bounding-set=-all,{bounds}", "--inh-caps=-all", *privileges]


def write_config(node: Node, config_map: Mapping[str, Any]) -> None:
    """Put a ConfigMap where the containers of a node find it."""
    folder = node.folder / "config" / config_map["metadata"]["name"]
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in config_map["data"].items():
        (folder / name).write_text(text)
