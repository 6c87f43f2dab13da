"""gRPC, imported with the settings that its C core reads once, at its start."""

from __future__ import annotations

import os

# It writes lines of its own to stderr, two a second for every endpoint that fails a TLS handshake.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
# Around every fork it would stop its threads: a process that cannot be started stood still for 10 s.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

import grpc

__all__ = ["grpc"]
