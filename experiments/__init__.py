"""Compare training methods: each file is a command, `python -m experiments.NAME`; results in docs/results/."""
