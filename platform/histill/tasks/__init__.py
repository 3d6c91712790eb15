"""Tasks: the training loss of a batch, and the metrics of a split."""
