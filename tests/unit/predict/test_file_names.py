"""Names of files for slides: readable, safe, and never one for two slides."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histill.predict.file_names import name_files

pytestmark = pytest.mark.unit


def test_letters_of_every_script_stay() -> None:
    slides = ["患者甲", "患者乙", "Müller", "αβγ-1.2_x", "हिन्दी"]
    assert name_files(slides) == {slide: slide for slide in slides}


def test_what_a_path_or_a_url_reads_does_not() -> None:
    assert name_files(["a/b c?d%e#f+g\\h:i*"]) == {"a/b c?d%e#f+g\\h:i*": "a_b_c_d_e_f_g_h_i_"}
    assert list(name_files(["..", ".hidden", "", "a\n"]).values()) == [
        "slide-5ec1f7e7",
        "hidden",
        "slide-e3b0c442",
        "a_",
    ]


@pytest.mark.parametrize(
    "slides",
    [
        ["one/slide", "two/slide"],
        ["a b", "a_b"],
        ["Slide", "slide", "SLIDE"],
        ["Straße", "STRASSE"],
        [unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")],
        ["x" * 300 + "1", "x" * 300 + "2"],
        ["患" * 100 + "1", "患" * 100 + "2"],
    ],
)
def test_each_slide_has_files_of_its_own(slides: list[str]) -> None:
    names = name_files(slides)
    assert list(names) == slides
    check_distinct(list(names.values()))


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=12), unique=True, max_size=8))
def test_any_names(slides: list[str]) -> None:
    check_distinct(list(name_files(slides).values()))


def check_distinct(names: list[str]) -> None:
    """Distinct and whole on systems that fold case and compose letters, and whose names end at 255 bytes."""
    folded = [unicodedata.normalize("NFC", name).casefold() for name in names]
    assert len(set(folded)) == len(folded)
    for name in names:
        assert name
        assert len(name.encode()) <= 200
        assert not set(name) & set('/\\:*?"<>| \n\t\0')
        assert name[0] != "."
