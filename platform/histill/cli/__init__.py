"""The command line: `histill <verb>`, and the jobs that `ray job submit` runs."""
