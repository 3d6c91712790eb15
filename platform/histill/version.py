"""The version of histill, of which cards and records keep a note."""

__version__ = "0.1.0"
