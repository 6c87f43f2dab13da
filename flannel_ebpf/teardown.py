"""`flannel-ebpf down`: take back what the daemon made, as much as is asked for."""

from __future__ import annotations
