"""Search: spaces over configuration keys, and the sweep on Ray Tune."""
