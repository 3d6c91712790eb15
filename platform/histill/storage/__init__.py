"""Local paths and s3:// URIs behind one set of functions.

Control files (manifests, configs, reports) go through fsspec; shards and checkpoints, where bytes matter, through
pyarrow's own S3 client, which costs half the CPU.
"""
