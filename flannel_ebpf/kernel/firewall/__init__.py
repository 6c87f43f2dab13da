"""iptables and nftables rules: read, written, watched."""
