"""Make a model the champion, if it passes the gates.

Scores the candidate and the current champion on the same held-out tiles, registers the candidate in MLflow,
and moves the alias `champion` to it only when every gate is passed; the former champion gets the alias
`previous`. The decision and its figures are kept on the registered version.

Prints the table of gates on stderr and one JSON line on stdout. Exit status: 0 promoted (or champion
already), 1 a gate refused, 2 bad input.

    python jobs/promote_model.py -c jobs/configs/promote_model.yaml model=s3://bucket/runs/student
"""

import sys

from histill.cli import Outcome, run_job
from histill.config.scoring import PromoteConfig


def main(config: PromoteConfig) -> Outcome:
    """Promote the candidate of `config`."""
    import tempfile

    from histill.registry.gates import gate_table
    from histill.registry.promotion import promote
    from histill.registry.settled import settled_reference

    with tempfile.TemporaryDirectory(prefix="histill-") as folder:
        held_out = settled_reference(config.held_out, config.tracking, folder, config.storage)
        promotion = promote(config.model_copy(update={"held_out": held_out}))
    if promotion.gates:
        print(gate_table(promotion.gates), file=sys.stderr)
    print(f"version {promotion.version} of {promotion.registered_name}: {promotion.decision}", file=sys.stderr)
    return Outcome(promotion.values(), ok=promotion.ok)


if __name__ == "__main__":
    sys.exit(run_job(PromoteConfig, main))
