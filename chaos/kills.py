"""Kill jobs as they write: running the same command again must end as if nothing had happened.

    python -m chaos.kills [--quick] [--kills 200] [--only ingest_local,promotion] [--seed 0] [--out FOLDER]

Ingest (to a local folder and to S3), the cache of responses, training, sweeps, promotion and prediction are killed at
seeded random moments: at their n-th write (a file that appears, a writing request to S3 or MLflow) or at any
time, mostly by SIGKILL, sometimes by SIGTERM or Ctrl-C; up to several times in a row, until the command may end.
The result is compared with an undisturbed run: the same files byte for byte, the same records; no partial
object, part file, temporary file, process, RUNNING run or open upload is left. Prints a line per chain,
a table, and as its last line one JSON object; exits with status 1 when anything is wrong. Linux only.
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from chaos.kill_runs.chain import Reference, Verdict, run_chain, undisturbed
from chaos.kill_runs.jobs import JOBS
from chaos.kill_runs.place import Place, servers
from histill.cluster.progress import format_duration
from histill.errors import HistillError

LONGEST = 5  # kills of one chain
QUICK = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(JOBS), metavar="JOB,...")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} kills")
    parser.add_argument("--out", type=Path, help="keeps logs and what was written there")
    chosen = parser.parse_args()
    if unknown := set(chosen.only) - set(JOBS):
        parser.error(f"--only names {', '.join(sorted(unknown))}; there are {', '.join(JOBS)}")
    if chosen.out is not None and chosen.out.exists() and any(chosen.out.iterdir()):
        parser.error(f"{chosen.out} is not empty; logs and files go into a folder of their own.")
    out = Path(tempfile.mkdtemp(prefix="kills-")) if chosen.out is None else chosen.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    try:
        with servers(out) as place:
            verdicts = kill(place, chosen.only, QUICK if chosen.quick else chosen.kills, chosen.seed)
    except HistillError as error:
        raise SystemExit(str(error)) from None
    print(f"\n{table(verdicts)}\n\nlogs: {out / 'logs'}")
    counts = sums(verdicts)
    print(json.dumps(counts))
    if any(verdict.faults for verdict in verdicts):
        raise SystemExit(1)


def kill(place: Place, names: Sequence[str], kills: int, seed: int) -> list[Verdict]:
    """Distribute about `kills` kills over the jobs."""
    wanted = {name: round(kills * JOBS[name].share / sum(JOBS[each].share for each in names)) for name in names}
    verdicts: list[Verdict] = []
    references: dict[str, Reference] = {}
    for name in dict.fromkeys(["ingest_local", *names]):  # whose tile set the others read
        references[name] = undisturbed(place, name, JOBS[name])
        took, written = sum(references[name].seconds), sum(references[name].writes)
        print(f"{name} undisturbed: {took:.0f} s, {written} writes", flush=True)
    begun = time.monotonic()
    for name in names:
        chance, done = random.Random(f"{seed} {name}"), 0
        while done < wanted[name]:
            chain = f"{name.replace('_', '-')}-{len(verdicts)}"
            length = min(chance.randint(1, LONGEST), wanted[name] - done)
            verdict = run_chain(place, name, JOBS[name], chain, length, references[name], chance)
            verdicts.append(verdict)
            done += max(1, verdict.killed)
            print(f"{line(verdict)} ({eta(verdicts, wanted, time.monotonic() - begun)})", flush=True)
    return verdicts


def line(verdict: Verdict) -> str:
    """Describe a chain in one line."""
    signals = ", ".join(f"{count} {name}" for name, count in sorted(verdict.kills.items())) or "no kill"
    ray = " on its own Ray" if verdict.own_ray else ""
    said = "; ".join(verdict.faults) or "as undisturbed"
    return f"{verdict.chain}{ray}: {signals}, {verdict.seconds:.0f} s, {said}"


def eta(verdicts: Sequence[Verdict], wanted: dict[str, int], spent_s: float) -> str:
    """The number of kills so far, and the estimated time for the others."""
    done, total = sum(verdict.killed for verdict in verdicts), sum(wanted.values())
    left_s = spent_s / max(1, done) * max(0, total - done)
    return f"{done} of {total} kills, {format_duration(left_s)} left"


def sums(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """Totals over all chains."""
    return {
        "kills": sum(verdict.killed for verdict in verdicts),
        "as_undisturbed": sum(verdict.killed for verdict in verdicts if not verdict.faults),
        "partial_objects": sum(verdict.partial for verdict in verdicts),
        "orphans": sum(verdict.orphans for verdict in verdicts),
        "running_runs": sum(verdict.running for verdict in verdicts),
    }


def table(verdicts: Sequence[Verdict]) -> str:
    """A row per job."""
    rows = []
    for name in dict.fromkeys(verdict.job for verdict in verdicts):
        own = [verdict for verdict in verdicts if verdict.job == name]
        signals = {key: sum(each.kills.get(key, 0) for each in own) for key in ("SIGKILL", "SIGTERM", "SIGINT")}
        counts = sums(own)
        rows.append(
            {"job": name, "chains": len(own), **signals, "in a write": sum(each.in_writes for each in own)}
            | {key.replace("_", " "): value for key, value in counts.items() if key != "kills"}
            | {"last process gone, s": f"{max(each.alone_s for each in own):.1f}"}
            | {"s per kill": f"{sum(each.seconds for each in own) / max(1, counts['kills']):.0f}"}
        )
    return tabulate(rows, headers="keys")


if __name__ == "__main__":
    main()
