"""The parts of `rckd_arms.py`: tile sets, runs in this process, and the table."""
