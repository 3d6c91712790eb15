"""Jobs that are killed as they write, given again, and held against an undisturbed run of the same command."""
