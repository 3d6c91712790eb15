"""A Ray Data graph that reads and decodes the passes of a stream on any node of the cluster."""
