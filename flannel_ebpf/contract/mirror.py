"""The whole mirror of bpf/flannel.h against an object."""

from __future__ import annotations

from flannel_ebpf.base.family import Family
from flannel_ebpf.contract import abi, btf, enums, learned, record

RECORDS: tuple[type[record.Record], ...] = tuple(
    one
    for module in (abi, learned)
    for one in vars(module).values()
    if isinstance(one, type) and issubclass(one, record.Record) and one is not record.Record
)
"""Every struct of the header."""


def check(compiled: btf.Btf, family: Family, *, complete: bool) -> None:
    """Compare structs and enums of a family's object with their mirror; see `btf.check`."""
    btf.check(compiled, record.STRUCTS[family], enums.ENUMS, complete=complete)
