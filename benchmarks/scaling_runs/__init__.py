"""The parts of `benchmarks/scaling.py`: measured runs on one to three nodes, and a model on paper beyond them."""
