"""The daemon: starts, wakes, does passes over the sides, tells."""
