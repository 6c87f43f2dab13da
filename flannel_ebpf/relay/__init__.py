"""The udp backend's relay: TUN device <-> UDP socket, in flannel's wire format, as a process of its own."""
