"""A registered model is fetched to one process: workers of others cannot read it, and are not promised to."""

import pytest

from histill.config.common import Tracking, Workers
from histill.config.promote_model import PromoteConfig
from histill.config.score_model import HeldOut, ScoreConfig
from histill.errors import InputError
from histill.registry.materialize import check_workers
from histill.registry.promotion import promote
from histill.registry.scoring import run_scoring

pytestmark = pytest.mark.unit

HELD_OUT = HeldOut(tiles="s3://t/t")
MODEL = "models:/nuclei@champion"
REFUSED = rf"^workers read the model themselves and model is {MODEL}, which only this job fetches"


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry that answers, and fetches nothing."""
    for module in ("materialize", "promotion"):
        monkeypatch.setattr(f"histill.registry.{module}.require_server_uri", lambda tracking: "http://tracking")
    monkeypatch.setattr("histill.registry.promotion.connect", lambda uri: None)


@pytest.mark.usefixtures("registry")
def test_workers_cannot_read_what_only_this_job_fetches() -> None:
    with pytest.raises(InputError, match=REFUSED):
        run_scoring(ScoreConfig(model=MODEL, held_out=HELD_OUT, workers=Workers()))
    with pytest.raises(InputError, match=REFUSED):
        promote(PromoteConfig(model=MODEL, registered_name="nuclei", held_out=HELD_OUT, workers=Workers()))
    reference = HeldOut.model_validate({"tiles": "s3://t/t", "reference": {"model": MODEL}})
    with pytest.raises(InputError, match=r"and held_out\.reference\.model is models:/nuclei@champion"):
        check_workers("s3://b/run", reference, Workers(), Tracking())
    for workers in (None, Workers(count=0)):
        check_workers(MODEL, HELD_OUT, workers, Tracking())
    check_workers("s3://b/run", HELD_OUT, Workers(), Tracking())


def test_without_workers_a_registered_model_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(uri: str, *_: object, **__: object) -> str:
        raise LookupError(uri)

    monkeypatch.setattr("histill.registry.scoring.fetch_model", fetch)
    with pytest.raises(LookupError, match=MODEL):
        run_scoring(ScoreConfig(model=MODEL, held_out=HELD_OUT, workers=Workers(count=0)))


@pytest.mark.parametrize("count", [0, 2])
def test_a_missing_registry_is_the_fault_that_is_told(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(InputError, match=r"^the model registry needs a tracking server"):
        run_scoring(ScoreConfig(model=MODEL, held_out=HELD_OUT, workers=Workers(count=count)))


def test_a_registry_that_is_away_is_the_fault_that_is_told() -> None:
    away = Tracking(uri="http://127.0.0.1:1")
    with pytest.raises(InputError, match=r"127\.0\.0\.1:1 cannot be reached"):
        run_scoring(ScoreConfig(model=MODEL, held_out=HELD_OUT, workers=Workers(), tracking=away))
