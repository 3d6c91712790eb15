"""One file for each scheme of URIs, named like it; `file` stands for local paths."""
