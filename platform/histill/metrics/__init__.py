"""Figures of merit as pure functions of counts and of scores; they know neither models nor files."""
