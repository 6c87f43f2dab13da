"""What the BPF side's maps and hooks should hold: pure."""
