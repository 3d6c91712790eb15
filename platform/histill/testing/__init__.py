"""Test utilities for code that extends histill: synthetic tile sets, and checks for teachers and storage schemes."""
