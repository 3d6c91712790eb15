"""Score a model as a job: figures, an HTML report, a picture, and a tracked run."""

import dataclasses
import math
import sys
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

import torch

from histill.artifacts.overlap import find_seen
from histill.config.command import format_command, list_changed_keys
from histill.config.score_model import ScoreConfig
from histill.engines.engine import Engine
from histill.evaluate.evaluator import Evaluator
from histill.evaluate.examine import examine
from histill.evaluate.panels import make_panels
from histill.evaluate.pictures import draw_reliability, draw_tiles
from histill.evaluate.predictions import Predictions
from histill.evaluate.readable import list_figures, name_tiles, render_table
from histill.evaluate.report import Report, render_report
from histill.evaluate.robustness import measure_robustness
from histill.evaluate.score import Score, compute_score
from histill.evaluate.shown_tiles import find_worst_tiles, spread_tiles
from histill.models.cost import measure_speed
from histill.registry.evidence import SCORE_PATH
from histill.registry.fetch import fetch_model, find_logged_model
from histill.registry.materialize import check_workers, materialize_reference
from histill.registry.mlflow_client import check_tracking, server_uri
from histill.registry.mlflow_runs import open_run
from histill.storage.control import json_bytes, probe, write_bytes
from histill.storage.scratch import scratch_folder
from histill.storage.uris import folder_of
from histill.train.tracker import DataUse

KIND = "score_model"
REPORT_PATH = "report.html"


def run_scoring(config: ScoreConfig) -> Score:
    """Score the model of `config`, write the report and picture it names, and track the score if a server is set.

    Raises InputError as `examine` does, for a model that workers cannot read, and for a tracking server that
    does not answer.
    """
    check_workers(config.model, config.held_out, config.workers, config.tracking)
    check_tracking(config.tracking)  # fail before the work starts
    for written in filter(None, (config.report, config.picture)):
        probe(folder_of(written), config.storage)
    with scratch_folder() as folder:
        model = fetch_model(config.model, config.tracking, Path(folder), with_onnx=config.engine != "torch")
        logged = find_logged_model(config.model, config.tracking)
        held_out = materialize_reference(config.held_out, config.tracking, folder, config.storage)
        examined = examine(model, held_out, config.storage, config.workers, config.encoder, config.engine)
        examiner = examined.examiner
        score = compute_score(examined, bootstrap_samples=config.bootstrap_samples)
        seen = find_seen(examiner.card, examiner.manifest, score.split, config.storage)
        score = dataclasses.replace(score, seen_cases=seen.cases, seen_tiles=seen.tiles)
        if config.robustness_tiles:
            score = dataclasses.replace(score, robustness=measure_robustness(examiner, config.robustness_tiles))
        if config.speed:
            score = dataclasses.replace(score, speed=_measure_speed(examiner))
        if config.picture:
            picture = draw_tiles(examiner, spread_tiles(examiner, config.picture_rows))
            write_bytes(config.picture, picture, config.storage)
            print(f"picture: {config.picture}", file=sys.stderr)
        _report(config, examiner, examined.answers, score, logged)
    print(render_table(score), file=sys.stderr)
    return score


def _measure_speed(examiner: Evaluator) -> dict[str, float | str]:
    """The speed of what ran the model in this process, and what it was; where workers ran it, the speed of torch."""
    engine, side = examiner.answer, examiner.card.size_px
    if isinstance(engine, Engine):
        return {"engine": engine.choice.name} | measure_speed(engine, side, torch.device("cpu"))
    return {"engine": "torch"} | measure_speed(examiner.network, side, examiner.device)


def _report(config: ScoreConfig, examiner: Evaluator, answers: Predictions, score: Score, logged: str | None) -> None:
    """Write the HTML report and track the score, if either is configured; `logged` is the version's LoggedModel."""
    if config.report is None and server_uri(config.tracking) is None:
        return
    page = render_report(score, _describe_report(config, examiner, answers)).encode()
    if config.report is not None:
        write_bytes(config.report, page, config.storage)
        print(f"report: {config.report}", file=sys.stderr)
    scored_on = DataUse(config.held_out.tiles, score.tiles_digest, "evaluation")
    tracker = open_run(
        config.tracking,
        name=f"score {PurePosixPath(config.model).name} on {score.split}".replace("'", ""),
        kind=KIND,
        config=config,
        run_id=None,
        tags={"model_digest": score.model_digest, "tiles_digest": score.tiles_digest},
        note=_describe(config, score),
        data=[scored_on],
    )
    if tracker is not None:
        if logged is None:
            tracker.metrics(_metrics(score), 0)
        else:
            tracker.figures(_metrics(score), scored_on, logged)
        tracker.file(SCORE_PATH, json_bytes(dataclasses.asdict(score)))
        tracker.file(REPORT_PATH, page)
        tracker.finish("FINISHED")


def _describe_report(config: ScoreConfig, examiner: Evaluator, answers: Predictions) -> Report:
    count = config.picture_rows
    return Report(
        card=examiner.card,
        model=config.model,
        manifest=examiner.manifest,
        command=format_command(KIND, {**list_changed_keys(config), "held_out.split": config.held_out.split}),
        made=datetime.now(UTC),
        panels={
            "The worst tiles": make_panels(examiner, find_worst_tiles(answers, count)),
            "Tiles from all over the split": make_panels(examiner, spread_tiles(examiner, count)),
        },
        pictures={} if examiner.outputs.dense else {"Calibration": draw_reliability(answers)},
    )


def _describe(config: ScoreConfig, score: Score) -> str:
    """The tracked run's description, in Markdown."""
    figures = (
        f"{name} {value}{f' ({interval})' if interval else ''}" for name, value, interval, _ in list_figures(score)
    )
    lines = [
        f"The model `{config.model}` on split `{score.split}` of `{config.held_out.tiles}`: {name_tiles(score)}.",
        "",
        *(f"- {line}" for line in figures),
        *([f"- page: `{config.report}`"] if config.report else []),
    ]
    return "\n".join(lines)


def _metrics(score: Score) -> dict[str, float]:
    """The score's numbers as metrics; nan is left out.

    MLflow groups their charts by what is before the slash, and sorts the groups by the alphabet: those of figures come
    beside `train` and `val`, and intervals, cost and degraded tiles after them.
    """
    figures = {f"{score.split}/{name}": value for name, value in score.figures.items()}
    ends = {
        f"within_95/{name}_{end}": value
        for name, both in score.intervals.items()
        for end, value in zip(("low", "high"), both, strict=True)
    }
    costs = {"parameters": score.parameters, "gmacs": score.gmacs, **score.speed}
    work = {f"workload/{name}": float(value) for name, value in costs.items() if not isinstance(value, str)}
    worse = {f"worse_tiles/{name}": value for name, value in score.robustness.items()}
    return {name: value for name, value in (figures | ends | work | worse).items() if not math.isnan(value)}
