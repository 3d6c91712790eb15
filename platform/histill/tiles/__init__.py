"""Tile sets: slides and images in, Parquet shards and a manifest out."""
