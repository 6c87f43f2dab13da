"""Edges towards the kernel: netlink, nftables, sysctl, TUN and bpf(2). Nothing here decides anything."""
