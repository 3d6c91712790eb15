"""One set of functions for local paths and object storage.

Control files (manifests, configs, reports) go through fsspec; shards and checkpoints, where throughput matters, go
through pyarrow's own client if it has one for the scheme.
"""
