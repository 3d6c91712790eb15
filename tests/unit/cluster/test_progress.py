"""The progress line, on a terminal and in a log."""

import re
from types import SimpleNamespace

import pytest

from histill.cluster import progress
from histill.cluster.progress import Progress, count_of, format_duration, track

pytestmark = pytest.mark.unit


class Time:
    """A clock that the test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: self.now))

    def started(self, title: str, total: int, **options: float) -> Progress:
        return Progress(title, total, "tiles", _begun=self.now, **options)  # type: ignore[arg-type]


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    return Time(monkeypatch)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (65, "1:05"), (59.6, "1:00"), (3700, "1:01:40"), (-3, "0:00")]
)
def test_clock(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_a_log_gets_a_line_with_rate_and_time_left_now_and_then(time: Time, capsys: pytest.CaptureFixture[str]) -> None:
    shown = time.started("ingest", 400, every_s=5.0)
    for second in range(1, 11):
        time.now = 100.0 + second
        shown.update(10 * second, "loss 0.5")
    shown.close()
    output, error = capsys.readouterr()
    assert output == ""
    lines = error.splitlines()
    assert lines[0] == "ingest   2% 10/400 tiles  10.0 tiles/s  ETA 0:39  loss 0.5"
    assert lines[1] == "ingest  15% 60/400 tiles  10.0 tiles/s  ETA 0:34  loss 0.5"
    assert len(lines) == 2
    assert "\r" not in error


def test_the_end_is_always_shown(time: Time, capsys: pytest.CaptureFixture[str]) -> None:
    shown = time.started("ingest", 4)
    time.now = 101.0
    shown.update(3)
    time.now = 101.5
    shown.update(4)
    assert capsys.readouterr().err.splitlines()[-1].startswith("ingest 100% 4/4 tiles")


def test_what_an_earlier_run_did_is_no_rate(time: Time, capsys: pytest.CaptureFixture[str]) -> None:
    shown = time.started("training", 1000)
    shown.start_at(900)
    time.now = 110.0
    shown.update(950)
    assert "5.0 tiles/s  ETA 0:10" in capsys.readouterr().err


def test_without_a_rate_the_time_left_is_unknown(time: Time, capsys: pytest.CaptureFixture[str]) -> None:
    time.started("ingest", 4).update(0)
    time.started("nothing", 0).update(0)
    first, second = capsys.readouterr().err.splitlines()
    assert "ETA ?" in first
    assert second.startswith("nothing 100% 0/0")


def test_one_unit_is_singular_and_what_took_no_time_has_no_rate(time: Time, capsys: pytest.CaptureFixture[str]) -> None:
    shown = time.started("retrieval", 1)
    time.now += 0.001
    shown.update(1)
    assert capsys.readouterr().err == "retrieval 100% 1/1 tile  ETA 0:00\n"


def test_work_counts_once_it_is_done_and_not_when_it_is_handed_out(
    time: Time, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in track([1000, 1000], 2000, title="neighbors", unit="tiles", count=int):
        time.now += 10.0
    first, second = capsys.readouterr().err.splitlines()
    assert first == "neighbors  50% 1000/2000 tiles  100 tiles/s  ETA 0:10"
    assert second == "neighbors 100% 2000/2000 tiles  100 tiles/s  ETA 0:00"


def test_counts_are_singular_for_one() -> None:
    assert [count_of(count, "part") for count in (0, 1, 1200)] == ["0 parts", "1 part", "1,200 parts"]


TRAINING = "epoch 1  loss 0.1234  waiting for data 3%"


@pytest.mark.parametrize(
    ("title", "width", "expected"),
    [
        (
            "first",
            110,
            [f"first  15% ━ 36000/240000 tiles  1,234 tiles/s  ETA 2:45  {TRAINING}"],
        ),
        ("first", 80, [f"first  15%  1,234 tiles/s  ETA 2:45  {TRAINING}"]),
        (
            "liver-csat",
            80,
            [
                "liver-csat  15% ━ 36000/240000 tiles  1,234 tiles/s  ETA 2:45",
                f"  {TRAINING}",
            ],
        ),
        (
            "liver-csat",
            30,
            [
                "liver-csat  15% 36000/240000 …",
                "  epoch 1  loss 0.1234",
                "  waiting for data 3%",
            ],
        ),
    ],
)
def test_a_terminals_lines_fit_it(time: Time, title: str, width: int, expected: list[str]) -> None:
    """Whole, if need be in two lines; only a title for which there is no room at all is cut."""
    shown = time.started(title, 240_000)
    shown.update(36_000, TRAINING, rate=1234.5)
    lines = shown._draw(width)
    assert [re.sub("━+", "━", line.plain) for line in lines] == expected  # a bar of the room that is left
    assert all(line.cell_len <= width for line in lines)


def test_a_rate_that_the_caller_knows_goes_before_the_measured_one(
    time: Time, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = time.started("training", 100)
    time.now = 110.0
    shown.update(50, rate=25.0)
    assert "25.0 tiles/s  ETA 0:02" in capsys.readouterr().err
