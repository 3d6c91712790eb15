"""Losses: a file for each term (`terms`), their table (`loss.py`), and the pure functions of tensors that they call."""
