"""Compare what trains how well: each file is a command, `python -m experiments.NAME`; figures in docs/results/."""
