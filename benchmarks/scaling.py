"""How speed scales with nodes, what limits it, and what 64 GPUs and 100 million tiles would cost.

    python -m benchmarks.scaling [--share 0.4] [--rounds 3] [--quick]
    python -m benchmarks.scaling --fed [--share 0.4] [--rounds 3] [--quick]

Needs root, network namespaces and cgroup v1. A Ray head and three worker nodes on separate hosts, S3 outside of
them; each node gets a fixed CPU share, head and S3 the rest. On 1, 2 and 3 nodes in turns, with the
same batch size per worker, the product's training loop runs two workloads: `ingest`, a tiny classifier that sees PNG
tiles of 1024 px at 32 px, and `compute`, CSAT on tiles of 64 px and cached responses to them. Both write real
checkpoints to S3. All-reduce is the time between the hand-over of gradients and the end of their all-reduce: it
includes waiting for the slower worker, which is shown separately.

With --fed, one node trains `ingest`, first decoding for itself and then while two nodes beside it decode.

The performance model is in scaling_runs/paper.py: its constants are measured here (manifest, plan, stream, gradients,
checkpoint) or assumed, which makes them options below. Prints a line per measurement, tables, and as its last line one
JSON object; draws docs/results/scaling.png.
"""

import argparse
import json
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from benchmarks.loaders.tiles import make_tiles
from benchmarks.scaling_runs.constants import constants_of, raw_constants
from benchmarks.scaling_runs.measured import Course, Measured, measure
from benchmarks.scaling_runs.paper import (
    Assumed,
    Constants,
    costs,
    curve,
    first_bottleneck,
    limits_at,
    options,
    used_shares,
)
from benchmarks.scaling_runs.picture import draw
from benchmarks.scaling_runs.workloads import DISTINCT, FED, WORKLOADS
from histill.errors import HistillError
from testbed.hosts import missing

PICTURE = Path(__file__).parents[1] / "docs" / "results" / "scaling.png"
GPUS = (1, 2, 4, 8, 16, 32, 48, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.4, help="CPUs of each node (0.4)")
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 3], help="numbers of nodes (1 2 3)")
    parser.add_argument("--rounds", type=int, default=3, help="times that each is measured (3)")
    parser.add_argument("--quick", action="store_true", help="one round of few steps, small manifests, no picture")
    parser.add_argument("--fed", action="store_true", help="one training node, without and with two that only decode")
    parser.add_argument("--picture", type=Path, default=PICTURE, help="where it is drawn (docs/results/scaling.png)")
    assumed = parser.add_argument_group("what is assumed in the model, since it cannot be measured here")
    for name, default, meaning in options():
        assumed.add_argument(
            f"--{name.replace('_', '-')}", type=type(default), default=default, help=f"{meaning} ({default:g})"
        )
    chosen = parser.parse_args()
    given = Assumed(**{name: getattr(chosen, name) for name, _, _ in options()})
    if (why := missing()) is not None:
        raise SystemExit(f"{why}; run this as root on Linux with iproute2.")
    course = Course(chosen.share, tuple(sorted(chosen.nodes)), 1 if chosen.quick else chosen.rounds, chosen.quick)
    pictures = decoded_tiles()
    if chosen.fed:
        measure_fed(replace(course, nodes=(1,), workloads=(WORKLOADS[0], FED), beside=2), pictures)
        return
    try:
        raw = raw_constants(pictures, _say, quick=chosen.quick)
        measured = measure(course, pictures, _say)
    except HistillError as error:
        raise SystemExit(str(error)) from None
    made = constants_of(raw, measured)
    if not chosen.quick:
        draw(chosen.picture, measured, made, given)
    print("\n" + "\n\n".join([scaling_table(measured), *raw_tables(raw), *paper_tables(made, given)]) + "\n")
    print(json.dumps({name: summary(rows) for name, rows in measured.items()} | {"model": on_paper(raw, made, given)}))


def measure_fed(course: Course, pictures: list[np.ndarray]) -> None:
    """Print the speed of a node that decodes for itself, of one that others decode for, and their ratio."""
    try:
        measured = measure(course, pictures, _say)
    except HistillError as error:
        raise SystemExit(str(error)) from None
    alone, fed = (measured[each.name][1] for each in course.workloads)
    print("\n" + scaling_table(measured) + "\n")
    ratio = round(fed["tiles_per_s"] / alone["tiles_per_s"], 3)
    print(json.dumps({"alone": _rounded(alone), "fed": _rounded(fed), "fed_over_alone": ratio}))


def _say(text: str) -> None:
    print(text, flush=True)


def decoded_tiles() -> list[np.ndarray]:
    """Generated H&E-like tiles, uint8 [512, 512, 3] each."""
    import simplejpeg

    with tempfile.TemporaryDirectory(prefix="scaling-tiles-") as folder:
        return [simplejpeg.decode_jpeg(path.read_bytes()) for path in make_tiles(Path(folder) / "jpeg", DISTINCT, 0)]


def summary(rows: dict[int, dict[str, float]]) -> dict[str, Any]:
    """The figures for each number of nodes, and the speed-up relative to the fewest."""
    fewest, *more = rows
    alone = rows[fewest]["tiles_per_s"]
    return {str(nodes): _rounded(row) for nodes, row in rows.items()} | {
        f"speedup_{nodes}": round(rows[nodes]["tiles_per_s"] / alone, 3) for nodes in more
    }


def on_paper(raw: dict[str, Any], made: Constants, given: Assumed) -> dict[str, Any]:
    """The model's results with all of its inputs."""
    found = first_bottleneck(made, given)
    return {
        "measured": _rounded(asdict(made)),
        "manifest": [_rounded(row) for row in raw["manifest"]],
        "plan": [_rounded(row) for row in raw["plan"]],
        "assumed": asdict(given),
        "first_bottleneck": None if found is None else {"gpus": found[0], "what": found[1]},
        "used_at_64": _rounded(used_shares(made, given, 64)),
        "limits_at_gpus": limits_at(made, given),
        "costs": _rounded(costs(made, given)),
        "curve": [_rounded(row) for row in curve(made, given, GPUS)],
    }


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in values.items()}


def scaling_table(measured: Measured) -> str:
    """A row per workload and number of nodes; medians of the rounds."""
    rows = []
    for name, by_nodes in measured.items():
        alone = next(iter(by_nodes.values()))["tiles_per_s"]
        for nodes, row in by_nodes.items():
            rows.append(
                {
                    "workload": name,
                    "nodes": nodes,
                    "tiles/s": f"{row['tiles_per_s']:.1f} "
                    f"({row['least_tiles_per_s']:.1f} to {row['most_tiles_per_s']:.1f})",
                    "times one node": f"{row['tiles_per_s'] / alone:.2f}",
                    "step ms": f"{row['step_ms']:.0f}",
                    "all-reduce": f"{row['all_reduce']:.1%}",
                    "of it waiting": f"{row['of_it_waiting']:.1%}",
                    "data wait": f"{row['data_wait']:.1%}",
                    "checkpoint": f"{row['checkpoint']:.1%}",
                    "ms each": f"{row['save_ms']:.0f}",
                    "CPUs of a worker": f"{row['worker_cpus']:.2f}",
                    "machine idle": f"{row['machine_idle']:.0%}",
                }
            )
    return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)


def raw_tables(raw: dict[str, Any]) -> list[str]:
    """The measured costs of manifests and plans."""
    manifests = [
        {
            "tiles": f"{row['tiles']:,}",
            "stored, bytes a tile": f"{row['stored_bytes'] / row['tiles']:.1f}",
            "written, s": f"{row['write_s']:.2f}",
            "writer's peak, MB": f"{row['write_peak_bytes'] / 1e6:.0f}",
            "read and checked, s": f"{row['read_s']:.2f}",
            "places found, s": f"{row['places_s']:.2f}",
            "held by a worker, MB": f"{row['held_bytes'] / 1e6:.0f}",
            "its peak, MB": f"{row['peak_bytes'] / 1e6:.0f}",
        }
        for row in raw["manifest"]
    ]
    plans = [
        {
            "tiles": f"{row['tiles']:,}",
            "first batch of one worker, s": f"{row['first_s_alone']:.3f}",
            "us a tile": f"{row['s_per_tile_alone'] * 1e6:.2f}",
            "first batch of one of 64, s": f"{row['first_s_of_64']:.3f}",
            "us a tile of its own": f"{row['s_per_tile_of_64'] * 1e6:.2f}",
            "its peak, MB": f"{row['memory_bytes_of_64'] / 1e6:.0f}",
        }
        for row in raw["plan"]
    ]
    return [tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True) for rows in (manifests, plans)]


def paper_tables(made: Constants, given: Assumed) -> list[str]:
    """Constants, speed, resource utilization, costs."""
    constants = [
        (name, f"{value:.4g}", "the product's default" if name in ("group_tiles", "shard_tiles") else "measured")
        for name, value in asdict(made).items()
    ]
    constants += [(name, f"{value:.10g}", "assumed") for name, value in asdict(given).items()]
    speeds = [
        {
            "GPUs": row["gpus"],
            "tiles/s": f"{row['tiles_per_s']:,.0f}",
            "efficiency": f"{row['efficiency']:.1%}",
            "step ms": f"{row['step_ms']:.1f}",
            "all-reduce": f"{row['all_reduce']:.1%}",
            "limit": row["limit"],
        }
        for row in curve(made, given, GPUS)
    ]
    at = limits_at(made, given)
    used = [
        {"resource": name, "used by 64 GPUs that never wait": f"{share:.1%}", "limits from GPUs": at[name] or "never"}
        for name, share in used_shares(made, given, 64).items()
    ]
    beside = [
        (name, f"{value:,.4g}" if value < 1000 else f"{value:,.0f}") for name, value in costs(made, given).items()
    ]
    found = first_bottleneck(made, given)
    said = (
        "no bottleneck but the GPU up to 64" if found is None else f"first bottleneck: {found[1]}, from {found[0]} GPUs"
    )
    return [
        tabulate(constants, headers=["constant", "value", "source"], tablefmt="github", disable_numparse=True),
        tabulate(speeds, headers="keys", tablefmt="github", disable_numparse=True),
        tabulate(used, headers="keys", tablefmt="github", disable_numparse=True),
        tabulate(beside, headers=[f"{given.tiles:,} tiles", ""], tablefmt="github", disable_numparse=True),
        said,
    ]


if __name__ == "__main__":
    main()
