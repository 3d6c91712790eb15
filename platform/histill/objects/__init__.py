"""Nuclei and other objects of segmented pixels: separated from their neighbors, outlined, and found across tiles."""
