"""Evaluation: predictions for a split, scores with confidence intervals, pictures, HTML report."""
