"""Files and locks of this host."""
