"""Start real servers on one machine, for the demo and the tests: S3, MLflow and a Ray head.

Each is a context manager: it starts the server, waits until it answers, and leaves no process behind.
"""
