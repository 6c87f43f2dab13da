"""Rules as the kernel keeps them, decoded for the proof: nftables' expressions, xtables' structures."""
