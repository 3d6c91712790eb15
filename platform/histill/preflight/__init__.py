"""Checks before a long run: what every node has and can reach, as rows of passed or failed checks."""
