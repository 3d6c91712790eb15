"""Cut whole slides, or import a folder of images, into a tile set: Parquet shards and a manifest.

Slides are cut on a grid at one declared resolution, leaving out background; images are listed in an index.csv. Splits
are by case. thumbnails/ of the tile set shows which tiles were cut from each slide. The same command again resumes an
interrupted ingest, and reuses a finished tile set.

  python jobs/ingest_tiles.py -c jobs/configs/ingest_slides.yaml output=s3://bucket/tiles slides.index=slides.csv
"""

import sys
from typing import TYPE_CHECKING

from histill.cli import Outcome, run_job
from histill.config.common import Split
from histill.config.ingest_tiles import IngestConfig

if TYPE_CHECKING:
    from histill.tiles.ingest import IngestReport

SPLITS: tuple[Split, ...] = ("train", "val", "test")


def main(config: IngestConfig) -> Outcome:
    from histill.storage.control import probe
    from histill.tiles.ingest import ingest
    from histill.tiles.summary import count_labels, find_warnings

    probe(config.output, config.storage)
    report = ingest(config)
    print(summary(report, config), file=sys.stderr)
    header = report.manifest.header
    return Outcome(
        {
            "output": config.output,
            "digest": header.digest,
            "tiles": header.tiles,
            "splits": header.splits,
            "skipped": len(report.skipped),
            "skipped_reasons": report.skipped,
            "notes": [*report.notes, *find_warnings(report.manifest)],
            "classes": count_labels(report.manifest),
            "reused": report.reused,
        }
    )


def summary(report: "IngestReport", config: IngestConfig) -> str:
    """Format the report: tables of splits (flagging empty ones) and classes, slides, what was skipped, and notes."""
    from tabulate import tabulate

    from histill.cluster.progress import count_of
    from histill.tiles.parts import THUMBNAILS
    from histill.tiles.slide_records import read_slides
    from histill.tiles.summary import SLIDES, count_labels, describe_slides, find_warnings

    rows = []
    for split in SPLITS:
        tiles, cases, masks = report.manifest.counts_of(split)
        wanted = getattr(config.split, split) > 0 or bool(config.split.pinned.get(split))
        rows.append((split, cases, tiles, masks, "EMPTY: pin a case to it" if wanted and not tiles else ""))
    lines = [tabulate(rows, headers=("split", "cases", "tiles", "masks", ""), tablefmt="simple")]
    if classes := count_labels(report.manifest):
        counts = [(name, *(found.get(split, 0) for split in SPLITS)) for name, found in classes.items()]
        lines += ["", tabulate(counts, headers=("tiles of the class", *SPLITS), tablefmt="simple"), ""]
    if report.manifest.header.slides:
        records = read_slides(report.manifest, config.storage)
        headers = ("slide", "case", "tiles", "tissue", "um/px")
        few = f" ({SLIDES} with the least tissue)" if len(records) > SLIDES else ""
        lines += [
            "",
            tabulate(describe_slides(records.values()), headers=headers, tablefmt="simple", disable_numparse=True),
        ]
        lines += [f"{count_of(len(records), 'slide')}{few}; pictures of what was cut: {config.output}/{THUMBNAILS}", ""]
    lines += [f"skipped: {reason}" for reason in report.skipped]
    lines += [f"note: {note}" for note in report.notes]
    lines += [f"warning: {warning}" for warning in find_warnings(report.manifest)]
    state = f"{count_of(report.parts_done, 'part')} done, {report.parts_reused} kept from before"
    if report.reused:
        state = "was there already"
        if report.skipped:
            state += "; skipped inputs are not tried again, so name another output once they are repaired"
    return "\n".join([*lines, f"{config.output}: {state}"])


if __name__ == "__main__":
    raise SystemExit(run_job(IngestConfig, main))
