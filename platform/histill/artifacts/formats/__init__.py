"""The formats in which other programs open a model: one module each, listed in `table.py`."""
