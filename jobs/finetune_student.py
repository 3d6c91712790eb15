"""Fine-tune a student on labels or masks: `histill finetune` for `ray job submit`."""

from histill.cli.command import run_job_file

if __name__ == "__main__":
    raise SystemExit(run_job_file("finetune_student"))
