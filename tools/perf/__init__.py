"""What tools/perf_compare.py consists of."""
