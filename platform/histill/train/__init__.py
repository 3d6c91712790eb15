"""Training: the loop, its checkpoints, and the launch on Ray Train."""
