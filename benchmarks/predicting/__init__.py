"""The parts of `benchmarks/predict_tiles.py`: what is predicted, by what, and the measurement."""
