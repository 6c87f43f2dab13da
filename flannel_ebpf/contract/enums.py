"""The constants of bpf/flannel.h in Python; `mirror.check` compares ENUMS with the object at every load."""

from __future__ import annotations

from enum import IntEnum, IntFlag


class Mode(IntEnum):
    """How packets reach a peer."""

    NONE = 0
    VXLAN = 1
    DIRECT = 2
    UDP = 3


class Fastpath(IntEnum):
    """Which packets may leave the kernel's path."""

    OFF = 0
    SUBNETS = 1
    FLOWS = 2
    AUTO = 3


class Check(IntEnum):
    """What to do with packets whose source is not who may send it."""

    OFF = 0
    COUNT = 1
    DROP = 2


class Cap(IntFlag):
    """Building blocks that the running kernel has (`kernel.probe`)."""

    REDIRECT_NEIGH = 1
    REDIRECT_PEER = 2
    ENCAP_L2_ETH = 4
    DECAP_L4_UDP = 8
    CSUM_LEVEL = 16
    COARSE_CLOCK = 32


class PeerFlag(IntFlag):
    """What is special about the way to a peer."""

    ON_LINK = 1
    BPF = 2


class PodFlag(IntFlag):
    """What is special about a pod, or about its veth."""

    SHAPED = 1
    GUARDED = 2
    STATELESS = 4
    NODE = 8


class Hook(IntEnum):
    """Where a packet was when its reason was counted; also the order of Count's fields."""

    FROM_POD = 0
    TO_PEER = 1
    FROM_PEER = 2
    TO_POD = 3
    XDP = 4


Reason = IntEnum(
    "Reason",
    "GO_ON FAST_VXLAN FAST_DIRECT FAST_UDP LEARN_SYN LEARN_NEW LEARN_REVALIDATE LEARN_PEER LEARN_YOUNG "
    "LEARN_LEFT LEARN_DELIVERED LEARN_CHANGED LEARN_LATE WRAPPED UNWRAPPED TCP_STATE STAND_ASIDE MEMBER "
    "NOT_OVERLAY NOT_FAMILY NOT_UNICAST TRUNCATED BAD_HEADER IP_OPTIONS FRAGMENT TTL TOO_BIG PROTOCOL GSO "
    "CHECKSUM ECN OUTER VXLAN_HEADER VNI INNER_MAC NO_POD SHAPED GUARDED NOT_GATEWAY POD_SOURCE "
    "PEER_SOURCE HELPER DROP_NOT_MEMBER DROP_PEER_SOURCE DROP_POD_SOURCE DROP_POD_TUNNEL DROP_BROKEN "
    "DROP_NO_PEER",
    start=0,
)
"""In what each packet ended; bpf/flannel.h says what each one means."""


def _constants(enum: type[IntEnum] | type[IntFlag], prefix: str, count: str = "") -> dict[str, int]:
    names = {f"{prefix}{one.name}": int(one) for one in enum}
    return {**names, count: len(names)} if count else names


ENUMS: dict[str, dict[str, int]] = {
    "fl_mode": _constants(Mode, "FL_MODE_"),
    "fl_fastpath": _constants(Fastpath, "FL_FASTPATH_"),
    "fl_check": _constants(Check, "FL_CHECK_"),
    "fl_cap": _constants(Cap, "FL_CAP_"),
    "fl_peer_flag": _constants(PeerFlag, "FL_PEER_"),
    "fl_pod_flag": _constants(PodFlag, "FL_POD_"),
    "fl_hook": _constants(Hook, "FL_HOOK_", "FL_HOOKS"),
    "fl_reason": _constants(Reason, "FL_", "FL_REASONS"),
}
"""Enum name in C -> constant -> value."""
