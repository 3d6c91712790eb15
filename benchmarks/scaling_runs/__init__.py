"""The parts of `benchmarks/scaling.py`: measured runs on one to three nodes, and a performance model beyond them."""
