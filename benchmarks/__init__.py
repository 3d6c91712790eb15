"""Measure what costs how much: each file is a command, `python -m benchmarks.NAME`; figures in docs/results/."""
