"""Local paths and the URIs of object storage behind one set of functions.

Control files (manifests, configs, reports) go through fsspec; shards and checkpoints, where bytes matter, through
pyarrow's own client if the kind of storage has one.
"""
