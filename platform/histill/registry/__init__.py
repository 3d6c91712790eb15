"""MLflow: runs, registered versions, gates, promotion. Nothing else in histill imports MLflow."""
