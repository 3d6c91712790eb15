"""What each use case's result says on a terminal: tables on stderr, and the values of the closing JSON line."""

import dataclasses
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from histill.cli.job import Outcome
from histill.config.common import Split

if TYPE_CHECKING:
    from histill.config.convert_encoder import ConvertConfig
    from histill.config.ingest_tiles import IngestConfig
    from histill.evaluate.export_model import Exported
    from histill.preflight.results import Row
    from histill.registry.decision import Promotion
    from histill.search.results import Sweep
    from histill.teachers.cache import CachedResponses
    from histill.teachers.encoder_folder import HubConfig
    from histill.tiles.ingest import IngestReport

SPLITS: tuple[Split, ...] = ("train", "val", "test")


def show(job: str, result: Any, config: Any) -> Outcome:
    """Print what `result` of the use case `job` tells on stderr; its outcome."""
    if job in _SHOWN:
        return _SHOWN[job](result, config)
    return Outcome(dataclasses.asdict(result))


def _show_ingest(report: "IngestReport", config: "IngestConfig") -> Outcome:
    from histill.tiles.summary import count_labels, find_warnings

    print(summarize_ingest(report, config), file=sys.stderr)
    header = report.manifest.header
    return Outcome(
        {
            "output": config.output,
            "digest": header.digest,
            "tiles": header.tiles,
            "splits": header.splits,
            "masks": header.masks,
            "skipped": len(report.skipped),
            "skipped_reasons": report.skipped,
            "notes": [*report.notes, *find_warnings(report.manifest)],
            "classes": count_labels(report.manifest),
            "reused": report.reused,
        }
    )


def summarize_ingest(report: "IngestReport", config: "IngestConfig") -> str:
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
    noted = 5 if any(row[-1] for row in rows) else 4  # columns
    headers = ("split", "cases", "tiles", "masks", "note")[:noted]
    lines = [tabulate([row[:noted] for row in rows], headers=headers, tablefmt="simple")]
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


def _show_cache(cached: "CachedResponses", _: Any) -> Outcome:
    from histill.evaluate.teacher_picture import CONTOURS_NAME
    from histill.storage.uris import join

    header = cached.header.model_dump(mode="json", exclude={"mean"})  # which may have thousands of numbers
    values = {"responses": cached.uri, "reused": cached.reused, **header}
    if cached.header.outputs.kind == "encoder":  # which has no classes to count or draw
        return Outcome(values)
    print(cached.shares.table(), file=sys.stderr)
    values |= {
        "contours": join(cached.uri, CONTOURS_NAME),
        "shares": cached.shares.values(),
        "implausible": list(cached.shares.implausible()),
    }
    return Outcome(values)


def _show_conversion(hub: "HubConfig", config: "ConvertConfig") -> Outcome:
    return Outcome({"folder": config.output, "architecture": hub.architecture, "model_args": hub.model_args})


def _show_sweep(sweep: "Sweep", config: Any) -> Outcome:
    from tabulate import tabulate

    from histill.search.results import metric_label

    rows = [
        [*(row[key] for key in row if key not in ("front", "error")), row["error"] or ("front" if row["front"] else "")]
        for row in sweep.rows()
    ]
    headers = ["trial", *list(sweep.rows()[0])[1:-4], metric_label(sweep.metric), metric_label(sweep.cost), "note"]
    print(tabulate(rows, headers=headers, floatfmt=".4g"), file=sys.stderr)
    if sweep.version is not None:
        print(f"{sweep.best.trial} is version {sweep.version} of {config.register_best}", file=sys.stderr)
    best = sweep.best
    return Outcome(
        {
            "run": sweep.run,
            "model": best.model,
            "best": dict(best.values),
            sweep.metric: best.quality,
            "front": list(sweep.front),
            "trials": len(sweep.trials),
            "version": sweep.version,
            "tracking_run": sweep.tracking_run,
        }
    )


def _show_promotion(promotion: "Promotion", _: Any) -> Outcome:
    from histill.registry.decision import format_files, format_quantized
    from histill.registry.gates import format_gates

    if promotion.gates:
        print(format_gates(promotion.gates), file=sys.stderr)
    if promotion.formats:
        print(f"\n{format_files(promotion.formats)}\n", file=sys.stderr)
    if quantized := format_quantized(promotion.formats):
        print(f"{quantized}\n", file=sys.stderr)
    version = "the candidate" if promotion.version is None else f"version {promotion.version}"
    print(f"{version} of {promotion.registered_name}: {promotion.decision}", file=sys.stderr)
    return Outcome(promotion.values(), ok=promotion.ok)


def _show_export(exported: "Exported", _: Any) -> Outcome:
    from histill.registry.decision import format_files

    print(format_files(exported.formats), file=sys.stderr)
    return Outcome(dataclasses.asdict(exported))


def _show_checks(rows: "list[Row]", _: Any) -> Outcome:
    from histill.preflight.table import format_table, terminal_width, wants_color

    print(format_table(rows, terminal_width(sys.stderr), wants_color(sys.stderr)), file=sys.stderr)
    failed = sum(row.state == "failed" for row in rows)
    return Outcome({"failed": failed, "checks": [dataclasses.asdict(row) for row in rows]}, ok=not failed)


_SHOWN: Mapping[str, Callable[[Any, Any], Outcome]] = {
    "ingest_tiles": _show_ingest,
    "cache_responses": _show_cache,
    "convert_encoder": _show_conversion,
    "search_students": _show_sweep,
    "promote_model": _show_promotion,
    "export_model": _show_export,
    "check_cluster": _show_checks,
}
