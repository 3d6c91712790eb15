"""Evaluation: predictions of a split, scores with intervals, pictures, the report."""
