"""Etcd as a source: the config by its key, and what leases say of this node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from types import SimpleNamespace
from typing import Any, cast

import pytest

from flannel_ebpf.base.config import parse_network_config
from flannel_ebpf.base.errors import ConfigError
from flannel_ebpf.base.model import Lease
from flannel_ebpf.base.options import EtcdOptions, Options
from flannel_ebpf.leases.etcd import source as module
from flannel_ebpf.leases.etcd.source import EtcdSource
from tests.samples import lease


@dataclass
class Registry:
    """A registry with a network config and these leases."""

    text: str | None = None
    leases: Sequence[Lease] = ()
    prefix: str = "/net/a"

    def network_config(self) -> str | None:
        return self.text

    def snapshot(self) -> Any:
        return SimpleNamespace(leases=tuple(self.leases))


def source(registry: Registry) -> EtcdSource:
    made = EtcdSource(Options(etcd=EtcdOptions(prefix="/net/a")), lambda _: None)
    made.interrupt()  # nothing is asked of a real one
    made._registry = cast(Any, registry)
    return made


def test_a_config_is_named_by_its_key() -> None:
    config = source(Registry('{"Network":"10.1.0.0/16"}')).network_config()
    assert config.network == ip_network("10.1.0.0/16")
    for text, wanted in ((None, "such as"), ("{", "JSON object"), ("{}", "Network")):
        with pytest.raises(ConfigError, match=wanted) as refused:
            source(Registry(text)).network_config()
        assert "etcd key /net/a/config" in str(refused.value)


def test_keys_that_mean_nothing_are_said(caplog: pytest.LogCaptureFixture) -> None:
    text = '{"network":"10.1.0.0/16","Foo":1,"Backend":{"Type":"vxlan","VNI":1,"Bar":3}}'
    assert source(Registry(text)).network_config().backend_type == "vxlan"
    assert caplog.messages == [
        f"etcd key /net/a/config: key {key} is none of flannel's and is ignored"
        for key in ("Foo", "Backend.Bar")
    ]


def test_the_example_of_a_config_is_one() -> None:
    assert parse_network_config(module.EXAMPLE, "the example").backend_type == "vxlan"


def test_former_leases_are_those_with_one_of_our_addresses() -> None:
    leases = [lease("10.1.5.0/24", "192.168.64.7"), lease("10.1.6.0/24", "192.168.64.8")]
    found = source(Registry(leases=leases)).former({ip_address("192.168.64.7"), ip_address("fd00::7")})
    assert [str(part.subnet) for part in found] == ["10.1.5.0/24"]


def test_it_says_where_it_asks() -> None:
    assert source(Registry()).where == "etcd at http://127.0.0.1:4001, http://127.0.0.1:2379"
