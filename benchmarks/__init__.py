"""Measure costs: each file is a command, `python -m benchmarks.NAME`; results in docs/results/."""
