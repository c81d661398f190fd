"""What pmuvisor's speed is, measured: `python -m benchmarks`, or `make bench`."""
