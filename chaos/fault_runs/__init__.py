"""Training runs on a site under faults, and the checks of their results."""
