#!/bin/sh
# flannel-ebpf: flannel's script of this name, same options and output.
exec flannel-ebpf docker-opts "$@"
