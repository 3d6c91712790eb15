"""histill distils small histology models on Ray."""

__version__ = "0.1.0"
