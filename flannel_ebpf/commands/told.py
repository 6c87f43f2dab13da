"""What commands take of the daemon's report where no flag says otherwise: where leases stand, how to ask."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from flannel_ebpf.base.options import EtcdOptions, KubeOptions, Options
from flannel_ebpf.host import report
from flannel_ebpf.leases.source import LeaseSource, open_source


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


def source_of(options: Options, told: report.Content | None) -> LeaseSource:
    """Open what holds the leases of a reported network, or without a report what the flags name.

    Kubernetes is asked when flags or report say so, as the node that the daemon is. Raises ConfigError.
    """
    environment: Mapping[str, str] = os.environ
    given = options.kube.kube_subnet_mgr or options.etcd.endpoints != EtcdOptions().endpoints
    if told and told["kube"]["node"] and not given:
        kube = told["kube"]
        environment = {**environment, "NODE_NAME": kube["node"]}
        url, file, prefix = (kube[key] for key in ("api_url", "kubeconfig_file", "annotation_prefix"))
        options = replace(options, kube=KubeOptions(True, url, file, prefix))
    elif told and told["etcd"]["endpoints"] and not given:
        options = replace(options, etcd=as_told(told["etcd"], options.etcd.password))
    else:
        options = replace(options, etcd=etcd_options(options))
    return open_source(options, lambda _: None, environment)
