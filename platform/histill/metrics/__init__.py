"""Metrics as pure functions of counts and scores, independent of models and files."""
