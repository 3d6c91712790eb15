"""Loss terms, one file each; `losses/loss.py` is their table."""
