import time

import numpy as np
import pytest
from PIL import Image

from stepcache.images.sheet import FULL, PARTIAL, TEXT, SheetRow, _font, _wrapped, contact_sheet


def square(colour, size=(64, 64)):
    return Image.new("RGB", size, colour)


def test_it_places_images_in_rows_and_columns():
    rows = [SheetRow("a", [square("red"), square("lime")]), SheetRow("b", [square("blue"), square("black")])]
    sheet = np.asarray(contact_sheet("h", "s", ["x", "y"], rows, cell=100))

    def centre(colour):
        where = np.argwhere((sheet == colour).all(-1))
        return where.mean(0), len(where)

    (red, n), (lime, _), (blue, _) = centre((255, 0, 0)), centre((0, 255, 0)), centre((0, 0, 255))
    assert n == 100 * 100
    assert red[0] == lime[0] and red[1] == blue[1]
    assert lime[1] - red[1] > 100 and blue[0] - red[0] > 100


def test_it_keeps_the_shape_of_images():
    sheet = np.asarray(contact_sheet("h", "s", ["x"], [SheetRow("a", [square("red", (64, 32))])], cell=100))
    where = np.argwhere((sheet == (255, 0, 0)).all(-1))
    assert tuple(where.max(0) - where.min(0) + 1) == (50, 100)


def test_it_draws_a_bar_for_each_step():
    def area(steps, colour):
        sheet = np.asarray(contact_sheet("", "", ["x"], [SheetRow("", [square("white")], steps=steps)]))
        return (sheet == colour).all(-1).sum()

    assert area("F", FULL) > 0 and area("P", FULL) == 0
    assert area("FPPFPP", FULL) == 2 * area("F", FULL)
    assert area("FPPFPP", PARTIAL) == 4 * area("P", PARTIAL)
    assert area("F" * 70, FULL) == 70 * area("F", FULL)  # on several lines
    assert area("F" * 1000, FULL) == 0  # too many to draw


def test_it_cuts_captions_to_the_column():
    long = "a " * 200 + "b" * 200
    sheet = contact_sheet(long, long, [long, "y"], [SheetRow("a", [square("white")] * 2)])
    short = contact_sheet("h", "s", ["x", "y"], [SheetRow("a", [square("white")] * 2)])
    assert sheet.width == short.width
    assert (np.asarray(sheet)[:, -20:] == 255).all()  # nothing runs off the page


def test_it_refuses_rows_of_another_length():
    with pytest.raises(ValueError, match="'a' has 1 images for 2 columns"):
        contact_sheet("h", "s", ["x", "y"], [SheetRow("a", [square("red")])])


@pytest.mark.parametrize("text", ["x" * 10**6, "x " * 10**6, "\u0301" * 10**5], ids=["word", "words", "accents"])
def test_a_megabyte_of_text_is_cut_first(text):
    """A letter at a time took two minutes for 8,000 characters."""
    start = time.perf_counter()
    contact_sheet("h", text, [text, "y"], [SheetRow("a", [square("white")] * 2)])
    assert time.perf_counter() - start < 20


def test_what_is_cut_off_fills_its_column():
    for text in ("W" * 300, "i" * 300, "ab " * 100):
        (line,) = _wrapped(text, TEXT, 200, most=1)
        assert line.endswith("...") and text.startswith(line[:-3])
        longer = text[: len(line) - 2]
        assert _font(TEXT).getlength(line) <= 200 < _font(TEXT).getlength(f"{longer}...") + 8
