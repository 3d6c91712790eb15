"""Losses: pure functions of tensors, each naming its equation. They keep no state and do no file work."""
