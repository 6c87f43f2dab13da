"""The etcd edge: the only place that speaks gRPC. Nothing of grpc or protobuf leaves it."""

from flannel_ebpf.base.options import EtcdOptions
from flannel_ebpf.leases.etcd.client import EtcdClient
from flannel_ebpf.leases.etcd.registry import Registry
from flannel_ebpf.leases.etcd.watch import Watch

__all__ = ["EtcdClient", "EtcdOptions", "Registry", "Watch"]
