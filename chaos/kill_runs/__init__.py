"""Kill jobs as they write, run them again, and compare the result with an undisturbed run of the same command."""
