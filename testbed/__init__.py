"""Shared by tests, benchmarks, experiments and chaos: hosts, a Ray cluster on them, a fault proxy."""
