"""A model over a bucket: predictions of every tile, and heatmaps of slides."""
