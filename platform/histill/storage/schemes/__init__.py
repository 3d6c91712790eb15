"""One module per URI scheme, named after it; `file` is for local paths."""
