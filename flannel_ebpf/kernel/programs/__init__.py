"""Compiled programs: loaded, pinned, in use, read out."""
