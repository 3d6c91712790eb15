"""Checks before a long run: what every node has and can reach, as rows that passed or failed."""
