"""The silence of exporters ends with them."""

import logging
import threading

import pytest

from histill.artifacts.formats.subject import quiet_exporters

pytestmark = pytest.mark.unit


def test_exports_of_two_threads_leave_logs_as_they_were() -> None:
    before = logging.root.manager.disable
    first_in, first_may_end, second_in, second_may_end = (threading.Event() for _ in range(4))

    def export(inside: threading.Event, may_end: threading.Event) -> None:
        with quiet_exporters():
            inside.set()
            may_end.wait(30)

    first = threading.Thread(target=export, args=(first_in, first_may_end))
    second = threading.Thread(target=export, args=(second_in, second_may_end))
    try:
        first.start()
        assert first_in.wait(30)
        second.start()
        second_in.wait(0.3)  # it must not begin yet
        first_may_end.set()
        first.join(30)
        second_may_end.set()
        second.join(30)
        assert logging.root.manager.disable == before
    finally:
        logging.disable(before)


def test_what_is_printed_meanwhile_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """By another thread, such as a line that a program reads."""
    with quiet_exporters():
        print("a line")
        with quiet_exporters():  # as an export of an export
            logging.getLogger("exporter").warning("nothing to act on")
    assert capsys.readouterr() == ("a line\n", "")
