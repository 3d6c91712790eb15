"""Training on Ray: launching a run on Ray Train, its workers, and their progress."""
