"""The terms of losses, one file each; `losses/loss.py` is their table."""
