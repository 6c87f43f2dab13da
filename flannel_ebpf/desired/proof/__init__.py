"""Which pods no firewall rule can concern: the proof behind `--fastpath=auto`."""
