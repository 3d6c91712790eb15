"""Pretrain a student without labels (RCKD, embeddings): `histill pretrain` for `ray job submit`."""

from histill.cli.command import run_job_file

if __name__ == "__main__":
    raise SystemExit(run_job_file("pretrain_student"))
