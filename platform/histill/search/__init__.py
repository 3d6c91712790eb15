"""Hyperparameter search: spaces over configuration keys, and sweeps on Ray Tune."""
