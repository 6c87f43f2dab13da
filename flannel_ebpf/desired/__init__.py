"""What should stand on this node, and what to do about it: pure."""
