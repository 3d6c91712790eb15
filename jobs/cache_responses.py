"""Cache a teacher's responses to a tile set, once: `histill cache` for `ray job submit`."""

from histill.cli.command import run_job_file

if __name__ == "__main__":
    raise SystemExit(run_job_file("cache_responses"))
