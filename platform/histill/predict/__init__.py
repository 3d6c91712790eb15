"""Batch prediction for every tile of a set, and heatmaps of its slides."""
