"""Losses: one file per term (`terms`), their table (`loss.py`), and the pure tensor functions that they call."""
