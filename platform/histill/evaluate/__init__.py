"""Evaluation: exact counts, scores, pictures."""
