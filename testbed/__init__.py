"""Machinery that tests, benchmarks, experiments and chaos share: hosts, a Ray cluster on them, a fault proxy."""
