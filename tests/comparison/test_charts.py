import xml.etree.ElementTree as ElementTree

import pytest

from stepcache.comparison.charts import drift_chart, round_up, schedule_bars


def rects(svg, kind):
    return [rect for rect in ElementTree.fromstring(svg).iter("rect") if rect.get("class") == kind]


def test_a_bar_for_each_call():
    svg = schedule_bars("FPPFP")
    assert len(rects(svg, "full")) == 2 and len(rects(svg, "partial")) == 3
    assert ElementTree.fromstring(svg).get("aria-label") == "3 of 5 U-Net calls are partial: FPPFP"


@pytest.mark.parametrize(
    ("value", "end"), [(0.0, 0.01), (0.004, 0.01), (0.01, 0.01), (0.03, 0.03), (0.31, 0.4), (0.7, 0.8), (9.1, 10)]
)
def test_axes_end_at_round_numbers(value, end):
    assert round_up(value) == pytest.approx(end)


def test_columns_are_as_high_as_the_mean_drift():
    svg = drift_chart("FPPF", [[0, 0.1, 0.2, 0], [0, 0.3, 0.2, 0]], top=0.4)
    first, second = rects(svg, "column")  # full steps have none
    assert float(first.get("height")) == pytest.approx(float(second.get("height")))
    ys = [float(line.get("y1")) for line in ElementTree.fromstring(svg).iter("line") if line.get("class") == "grid"]
    assert float(first.get("height")) == pytest.approx((max(ys) - min(ys)) / 2, abs=0.02)
    assert len(rects(svg, "full")) == len(rects(svg, "partial")) == 2
    spread, none = (line for line in ElementTree.fromstring(svg).iter("line") if line.get("class") == "spread")
    assert float(spread.get("y1")) - float(spread.get("y2")) == pytest.approx(float(first.get("height")), abs=0.02)
    assert none.get("y1") == none.get("y2")


def test_a_chart_says_in_words_what_it_shows():
    svg = drift_chart("FPP", [[0, 0.1, 0.25]], top=0.5)
    assert "mean at most 25.0%, in step 2" in ElementTree.fromstring(svg).get("aria-label")
    assert "step 1: 10.0%" in svg and ">50 %<" in svg and ">25 %<" in svg


@pytest.mark.parametrize("steps", [1, 2, 7, 50, 200])
def test_any_number_of_steps_fits(steps):
    svg = drift_chart("F" + "P" * (steps - 1), [[0.0] + [0.5] * (steps - 1)], top=0.5)
    root = ElementTree.fromstring(svg)
    width = float(root.get("viewBox").split()[2])
    for rect in root.iter("rect"):
        assert float(rect.get("x")) + float(rect.get("width")) <= width
    assert 1 <= len(list(root.iter("text"))) - 3 <= 10
