"""The Ray cluster: join it, run tasks on it, show progress."""
