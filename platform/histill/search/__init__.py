"""Search: spaces over configuration keys, and the sweep that Ray Tune drives."""
