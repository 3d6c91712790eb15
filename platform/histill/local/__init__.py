"""Real servers on one machine, for the demo, the tests and the benchmarks: S3, MLflow and a Ray head.

Each is a context manager: it starts the server, waits until it answers, and leaves no process behind.
"""
