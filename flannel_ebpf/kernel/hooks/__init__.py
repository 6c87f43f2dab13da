"""Programs on their hooks: clsact, tcx, and whose they are."""
