"""Runs of training on a site that is broken meanwhile, and what must be true of them in the end."""
