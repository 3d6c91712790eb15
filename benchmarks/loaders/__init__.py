"""The loaders that `stream_tiles.py` measures, each over the same tiles in its own format."""
