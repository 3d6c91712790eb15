"""The stream: run plan -> encoded row groups by Ray Data -> late decode -> fixed-size batches."""
