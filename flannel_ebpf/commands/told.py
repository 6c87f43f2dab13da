"""What commands take of the daemon's report where no flag says otherwise: how etcd is reached."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flannel_ebpf.base.options import EtcdOptions, Options
from flannel_ebpf.host import report


def etcd_options(options: Options) -> EtcdOptions:
    """Return the options of etcd as given; if no endpoint is, those of a daemon that runs or ran here.

    An operator's shell has not the variables of the unit's /etc/default/flannel-ebpf. Passwords are not told.
    """
    if options.etcd.endpoints != EtcdOptions().endpoints:
        return options.etcd
    prefix = options.etcd.prefix
    default = prefix == EtcdOptions().prefix
    for _, told in report.read_all(options.state_dir):
        if told and told["etcd"]["endpoints"] and (default or told["etcd"]["prefix"] == prefix):
            return as_told(told["etcd"], options.etcd.password)
    return options.etcd


def as_told(told: Mapping[str, Any], password: str) -> EtcdOptions:
    """Return the options of etcd of one report."""
    names = ("prefix", "keyfile", "certfile", "cafile", "username")
    return EtcdOptions(tuple(told["endpoints"]), password=password, **{name: told[name] for name in names})
