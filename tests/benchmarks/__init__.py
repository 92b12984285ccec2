"""Benchmarks: ratios of things measured in turn within one run, with the accuracy of each beside its time."""
