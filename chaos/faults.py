"""Inject faults into training runs on three hosts: into processes, nodes, network links and servers.

    python -m chaos.faults [--quick] [--kinds worker_killed link_cut ...] [--times 1]

Needs root and network namespaces: a Ray head and two worker nodes on separate hosts, an S3 and an MLflow server
outside, token authentication on; every run is submitted from outside by `ray job submit`. Each run must end like an
undisturbed one of the same seed: every tile of each epoch seen once, according to the coverage in all its checkpoints;
one MLflow run whose history has no gaps or repeats; the loss within 1 %; no checkpoint left over. Prints a line per
run, a table, and as its last line one JSON object.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
import traceback
from collections.abc import Mapping
from pathlib import Path

from tabulate import tabulate

from chaos.fault_runs.kinds import KINDS, NOTICE_S, FaultContext, one_of_each
from chaos.fault_runs.run import Run, Verdict
from chaos.fault_runs.tiles import make_tiles
from histill.errors import HistillError
from testbed.site import site


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), metavar="KIND")
    parser.add_argument("--quick", action="store_true", help="one run that gets four different faults")
    parser.add_argument("--times", type=int, help="how often each kind is done; default: more of what is quick")
    parser.add_argument("--out", type=Path, help="keeps consoles and logs there")
    chosen = parser.parse_args()
    if chosen.out is not None and chosen.out.exists() and any(chosen.out.iterdir()):
        parser.error(f"{chosen.out} is not empty; consoles and logs go into a folder of their own.")
    try:
        judge(chosen)
    except HistillError as error:
        raise SystemExit(str(error)) from None


def judge(chosen: argparse.Namespace) -> None:
    """Inject the faults, and report on the runs."""
    kinds = {"one_of_each": (one_of_each, 1)} if chosen.quick else {kind: KINDS[kind] for kind in chosen.kinds}
    out = Path(tempfile.mkdtemp(prefix="faults-")) if chosen.out is None else chosen.out.resolve()
    verdicts: dict[str, list[Verdict]] = {}
    with site(out, notice_s=NOTICE_S) as where:
        setting = make_tiles(where)
        known: dict[str, Mapping[str, float]] = {}

        def reference(changes: Mapping[str, str]) -> Mapping[str, float]:
            what = json.dumps(changes, sort_keys=True)
            if what not in known:
                with Run(where, setting, f"undisturbed-{len(known)}", dict(changes)) as run:
                    verdict = run.verdict(None)
                if verdict.faults:
                    raise HistillError(f"the undisturbed run with {what}: {verdict.faults}", code="testbed-failed")
                known[what] = verdict.metrics
            return known[what]

        for number, (kind, (fault, times)) in enumerate(kinds.items(), start=1):
            begun = time.monotonic()
            try:
                verdicts[kind] = fault(FaultContext(where, setting, reference), chosen.times or times)
            except Exception as error:  # the other kinds are still worth running
                traceback.print_exc()
                verdicts[kind] = [Verdict(kind, chosen.times or times, [repr(error)])]
            for verdict in verdicts[kind]:
                said = "; ".join(verdict.faults) or "as undisturbed"
                took = f"{time.monotonic() - begun:.0f} s; kind {number} of {len(kinds)}"
                print(f"{verdict.name}: {verdict.injected} faults, {said} ({took})", flush=True)
    print(f"\n{table(verdicts)}\n\nconsoles and logs: {out}")
    every = [verdict for each in verdicts.values() for verdict in each]
    print(
        json.dumps(
            {
                "injected": sum(verdict.injected for verdict in every),
                "survived": sum(verdict.survived for verdict in every),
                "lost_tiles": sum(verdict.lost for verdict in every),
                "repeated_tiles": sum(verdict.repeated for verdict in every),
            }
        )
    )
    if any(verdict.faults for verdict in every):
        raise SystemExit(1)


def table(verdicts: dict[str, list[Verdict]]) -> str:
    """A row per kind."""
    rows = []
    for kind, each in verdicts.items():
        resumed = [seconds for verdict in each for seconds in verdict.resumed_s]
        behind = [steps for verdict in each for steps in verdict.behind]
        differences = [verdict.loss_difference for verdict in each if not math.isnan(verdict.loss_difference)]
        rows.append(
            {
                "fault": kind,
                "runs": len(each),
                "injected": sum(verdict.injected for verdict in each),
                "survived": sum(verdict.survived for verdict in each),
                "ledgers": sum(verdict.ledgers for verdict in each),
                "lost": sum(verdict.lost for verdict in each),
                "repeated": sum(verdict.repeated for verdict in each),
                "loss differs by": f"{max(differences):.1e}" if differences else "",
                "to a new checkpoint, s": f"{statistics.median(resumed):.0f} ({max(resumed):.0f})" if resumed else "",
                "steps done again": f"{statistics.median(behind):.0f} ({max(behind)})" if behind else "",
            }
        )
    return tabulate(rows, headers="keys")


if __name__ == "__main__":
    main()
