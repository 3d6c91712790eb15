"""The Ray cluster: joining it, running tasks on it, and showing how far they are."""
