"""Every error this program raises on purpose.

    FlannelError
      ConfigError             a flag, variable, file or etcd config that cannot be used
      UnknownBackend        the network's backend is not one of ours: no retry, as flanneld
      AlreadyRunning          another daemon holds this network's lock
      SourceError             where the config and the leases are kept
        SourceClosed          its client was closed, because the daemon stops
        EtcdError
          EtcdUnavailable     no endpoint answers; trying again may help
          EtcdRefused         etcd answered and said no (permission, auth, bad request)
            EtcdTooMuch       the answer is larger than a message may be
        KubeError
          KubeUnavailable     the API server does not answer; trying again may help
          KubeRefused         it answered and said no (permission, credentials, bad request)
            KubeGone          it no longer remembers the state that was asked for
      LeaseError
        OutOfSubnets          no free subnet between SubnetMin and SubnetMax
        LeaseConflict         somebody else created the key first; trying again may help
        LeaseLost             our subnet belongs to another node now
        InvalidLease          a key or value under `subnets` that is no lease
      KernelError             a netlink, sysctl or TUN request the kernel refused
        DeviceMissing         a device that the request needs is not there
      BpfError
        BpfUnavailable        this host cannot run the programs (rights, bpffs, BTF, helpers)
        VerifierRejected      the kernel's verifier refused a program
        ProgramsRequired      --datapath=ebpf where they cannot run
        AbiMismatch           bpf/flannel.h, its Python mirror and the object disagree
      LabError                the lab could not build or find a piece

Edges translate foreign exceptions into these; nothing else crosses a module boundary.
A message names the value, where it came from, and what would be right.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from flannel_ebpf.base.one_line import one_line


class FlannelError(Exception):
    """Base of all errors raised on purpose; its text is one line fit for an operator."""


class ConfigError(FlannelError):
    """A setting that cannot be used.

    `value` is what was given (None: nothing), `source` where it was read (flag, variable, etcd key, file),
    `expected` what would be right.
    """

    def __init__(self, source: str, value: object, expected: str) -> None:
        given = "nothing is there" if value is None else f"{one_line(repr(value), 200)} cannot be used"
        super().__init__(f"{source}: {given}: {expected}")
        self.source = source
        self.value = value
        self.expected = expected


class UnknownBackend(ConfigError):
    """The network config asks for a backend that this program has not; flanneld exits on it too."""


class AlreadyRunning(FlannelError):
    """Another daemon holds the lock of this network."""


class SourceError(FlannelError):
    """Something between us and where the config and the leases are kept."""


class SourceClosed(SourceError):
    """The client was closed, because the daemon stops: nothing will be tried again."""


class EtcdError(SourceError):
    """Something between us and etcd."""


class EtcdUnavailable(EtcdError):
    """No endpoint answered; the request may be tried again."""


class EtcdRefused(EtcdError):
    """Etcd answered and refused the request; trying again alone will not help.

    `after_silence`: an endpoint asked before gave no answer, and may have carried the request out.
    """

    after_silence = False


class EtcdTooMuch(EtcdRefused):
    """The answer is larger than a message may be; asking for less helps."""


class KubeError(SourceError):
    """Something between us and the API server; `code` is its HTTP status, 0 when it gave none."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class KubeUnavailable(KubeError):
    """The API server did not answer, or said that it cannot now; the request may be tried again."""


class KubeRefused(KubeError):
    """The API server answered and refused the request; trying again alone will not help."""


class KubeGone(KubeRefused):
    """The API server no longer remembers the state that a list or watch should continue; a new list helps."""


class LeaseError(FlannelError):
    """A subnet lease could not be taken or kept."""


class OutOfSubnets(LeaseError):
    """Every subnet between SubnetMin and SubnetMax is taken."""


class LeaseConflict(LeaseError):
    """Another node created the key first; choose again."""


class LeaseLost(LeaseError):
    """The subnet belongs to another node now."""


class InvalidLease(LeaseError):
    """A key or value under `<prefix>/subnets` that is no lease; the text says which part and why."""


class KernelError(FlannelError):
    """The kernel refused a request; `code` is the errno, 0 when there was none."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class DeviceMissing(KernelError):
    """A device that the request needs is not there."""


class DeviceUnsupported(KernelError):
    """The kernel knows no such kind of device: its module is missing."""


class BpfError(FlannelError):
    """Something about BPF objects, maps or programs; `code` is the errno, 0 when there was none."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class BpfUnavailable(BpfError):
    """This host cannot run the programs; the text says which part is missing."""


class VerifierRejected(BpfError):
    """The kernel's verifier refused a program; `log` holds the end of its output."""

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log


class ProgramsRequired(BpfError):
    """`--datapath=ebpf`, and this host cannot run the programs: the operator must decide."""


class AbiMismatch(BpfError):
    """The contract header, its Python mirror and the compiled object disagree."""


class LabError(FlannelError):
    """The lab could not build or find a piece of itself."""


class ThreadDied(FlannelError):
    """A thread of the daemon ended with an exception that nobody expected: a bug, told in the log."""


@contextmanager
def edge(what: str, kind: type[KernelError] | type[BpfError] = KernelError) -> Iterator[None]:
    """Turn the system's refusals in the block into KernelError, or `kind`; `what` was being done."""
    try:
        yield
    except OSError as error:
        raise kind(f"{what}: {error.strerror or error}", error.errno or 0) from error
