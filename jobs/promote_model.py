"""Make a model the champion if it passes the gates, or roll back to the former one.

Scores the candidate and the current champion on the same held-out tiles, registers the candidate in MLflow with its
exported formats and its card, and moves the alias `champion` to it only if it passes every gate; the former champion
gets the alias `previous`. The decision and its figures are recorded on the registered version.

Prints the table of gates on stderr and one JSON line on stdout. Exit status: 0 promoted (or already champion, or rolled
back), 1 a gate refused or another promotion was faster, 2 bad input.

    python jobs/promote_model.py -c jobs/configs/promote_model.yaml model=s3://bucket/runs/student --dry-run
    python jobs/promote_model.py registered_name=nuclei-student --rollback
    python jobs/promote_model.py -c my.yaml model=s3://bucket/runs/student --copy-to http://mlflow.production:5000
"""

import sys

from histill.cli import Outcome, run_job
from histill.config.promote_model import PromoteConfig


def main(config: PromoteConfig) -> Outcome:
    """Promote the candidate of `config`."""
    from histill.registry.gates import format_gates
    from histill.registry.promotion import promote

    promotion = promote(config)
    if promotion.gates:
        print(format_gates(promotion.gates), file=sys.stderr)
    version = "the candidate" if promotion.version is None else f"version {promotion.version}"
    print(f"{version} of {promotion.registered_name}: {promotion.decision}", file=sys.stderr)
    return Outcome(promotion.values(), ok=promotion.ok)


if __name__ == "__main__":
    sys.exit(run_job(PromoteConfig, main))
