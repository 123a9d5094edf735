"""Figures: the committed ones match the CSVs, they draw what the rows say, and equal rows give equal bytes."""

import itertools
import re
import xml.etree.ElementTree as ElementTree

import matplotlib
import pytest
from support.bench_rows import ladder, row

from benchmarks import RESULTS, ROOT
from benchmarks.pages import canvas, plots, tables, two_graphs
from benchmarks.pages.figures import DARK, LIGHT, THEMES
from benchmarks.pages.ladder import ladders
from stepcache.bench.rows import write

PINNED = re.search(r"^matplotlib==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]


def drawn(figures, theme=LIGHT):
    return {figure.name: figure.draw(theme) for figure in figures}


def texts(svg):
    return ["".join(node.itertext()) for node in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


@pytest.fixture
def csv(tmp_path):
    """A function that writes rows and returns the CSV's path."""

    def written(rows):
        write(tmp_path / "bench_demo.csv", rows)
        return tmp_path / "bench_demo.csv"

    return written


@pytest.mark.skipif(matplotlib.__version__ != PINNED, reason=f"SVGs are made with matplotlib {PINNED}")
def test_the_svgs_are_those_of_the_csvs():
    made = tables.figure_files()
    assert sorted(path.name for path in RESULTS.glob("*.svg")) == sorted(made), "run `make tables`, remove leftovers"
    different = [name for name, text in made.items() if (RESULTS / name).read_text() != text]
    assert not different, "run `make tables`"


def test_the_two_graphs_are_as_committed():
    for name, text in two_graphs.FIGURE.files().items():
        assert (RESULTS / name).read_text() == text, "run `make tables`"


def test_the_two_graphs():
    for theme in THEMES:
        shown = texts(two_graphs.FIGURE.draw(theme))
        assert {"Full step", "Partial step, branch 1", "conv_in", "join 0", "join 1", "feature"} <= set(shown)
        assert theme.accent in two_graphs.FIGURE.draw(theme)
    dashed = two_graphs.FIGURE.draw(LIGHT).count("<rect") - 2  # boxes; two panels
    assert dashed == 2 * (2 * len(two_graphs.ROWS) + 1)
    skipped = re.findall(r"<rect[^>]*stroke-dasharray", two_graphs.FIGURE.draw(LIGHT))
    assert len(skipped) == 2 * (len(two_graphs.ROWS) - 2) + 1  # below join 1, and the mid block


def test_the_same_rows_give_the_same_bytes(csv):
    path = csv(ladder())
    for make in (plots.ladder_figures, plots.fidelity_figures):
        assert drawn(make(path)) == drawn(make(path))
        assert "dc:date" not in "".join(drawn(make(path)).values())


def test_plots_leave_matplotlibs_settings_alone(csv):
    before = dict(matplotlib.rcParams)
    drawn(plots.ladder_figures(csv(ladder())))
    assert dict(matplotlib.rcParams) == before


def test_themes_differ_in_colours_alone(csv):
    (figure,) = plots.ladder_figures(csv(ladder()))
    light, dark = figure.draw(LIGHT), figure.draw(DARK)
    assert light != dark and texts(light) == texts(dark)
    for theme, svg in ((LIGHT, light), (DARK, dark)):
        colours = set(re.findall(r"#[0-9a-f]{6}", svg))
        assert colours <= {theme.ink, theme.muted, theme.faint, theme.other, theme.accent}


def test_ladder_shows_every_rung_and_why_one_is_missing(csv):
    ((name, svg),) = drawn(plots.ladder_figures(csv(ladder()))).items()
    assert name == "bench_demo_ladder_1"
    shown = texts(svg)
    assert [text for text in shown if text in ("nothing reused", "interval 3, branch 0", "interval 5, branch 0")] == [
        "nothing reused",
        "interval 3, branch 0",
        "interval 5, branch 0",
    ]
    for text in ("eager", "10.0 s, 1.00x", "stepcache compiled, default", "2.50 s, 4.00x", "not available: needs CUDA"):
        assert text in shown


def test_bars_are_as_long_as_the_seconds(csv):
    svg = plots.draw_ladder(*next(iter(ladders(csv(ladder())).items())), LIGHT)
    bars = re.findall(r'<path d="M ([\d.]+) [\d.]+\s+L ([\d.]+) [^"]*" [^>]*style="fill: (#\w+)"', svg)
    lengths = [(float(right) - float(left), colour) for left, right, colour in bars]
    measured = [r for r in ladders(csv(ladder())).popitem()[1].rows if r.status == "ok"]
    assert len(lengths) == len(measured)
    for (length, colour), rung in zip(lengths, measured, strict=True):
        assert length / lengths[0][0] == pytest.approx(rung.pipeline_s / 10, rel=1e-3)
        assert colour == (LIGHT.accent if "stepcache" in rung.variant else LIGHT.other)


def test_a_ladder_in_which_nothing_ran(csv):
    (svg,) = drawn(plots.ladder_figures(csv([row("eager"), row("deepcache", None, (3, 0))]))).values()
    assert texts(svg).count("failed: RuntimeError: no luck") == 2


def test_a_figure_for_each_cell(csv):
    path = csv([*ladder(), *ladder(batch=4)])
    assert list(drawn(plots.ladder_figures(path))) == ["bench_demo_ladder_1", "bench_demo_ladder_2"]
    assert list(drawn(plots.fidelity_figures(path))) == ["bench_demo_fidelity_1", "bench_demo_fidelity_2"]


def test_fidelity_compares_eager_with_eager_and_compiled_with_compiled(csv):
    lossy = {"psnr": 20.0, "flop_bound": 3.0}
    rows = [
        *ladder(predict="auto"),
        row("fewer-steps", 5.0, (3, 0), fewer=8, **lossy),
        row("compile+fewer-steps", 4.0, (3, 0), mode="default", fewer=8, **lossy),
        row("compile+fewer-steps", 3.2, (3, 0), mode="max-autotune", fewer=8, **lossy),
        row("deepcache", 3.0, (5, 1), **lossy),  # a deeper branch
    ]
    path = csv(rows)
    points = plots.fidelity_points(ladders(path).popitem()[1])
    assert [(p.method, p.x, p.y, p.label, p.ours) for p in points] == [
        ("fewer steps, eager", 2.0, 20.0, "8", False),
        ("DeepCache, eager", 2.5, 30.0, "3", False),
        ("fewer steps, compiled", 3.125, 20.0, "8", False),
        ("stepcache, eager", pytest.approx(8 / 3), 30.0, "3", True),
        ("stepcache, compiled", 4.0, 30.0, "3", True),
        ("DeepCache, eager", pytest.approx(10 / 3), 25.0, "5", False),
        ("stepcache, compiled", 5.0, 24.5, "5", True),
    ]
    ((_, svg),) = drawn(plots.fidelity_figures(path)).items()
    below = 'PSNR against the eager original\'s image, dB; branch 0; stepcache with predict="auto"'
    assert below in texts(svg) and "fewer steps, compiled" in texts(svg)


def test_fidelity_needs_images_that_mean_something(csv):
    assert not plots.fidelity_figures(csv(ladder(weights="random")))
    assert not plots.fidelity_figures(csv([row("eager", 10.0), row("stepcache-eager", 9.0, (1, 0), psnr=float("inf"))]))


def test_points_of_any_measures():
    points = [
        plots.Point(name, x, x * y, "7", name == "ours") for name, y in (("ours", 2), ("theirs", 3)) for x in (1, 2)
    ]
    svg = plots.draw_points(points, DARK, title="A title", x="work", y="likeness")
    shown = texts(svg)
    assert {"A title", "work", "likeness", "ours", "theirs"} <= set(shown) and shown.count("7") == 4
    assert svg.count(DARK.accent) > 1 and svg.count(DARK.other) > 1


def test_names_of_methods_do_not_cover_each_other():
    points = [plots.Point(f"method {n}", 1 + n / 100, 30.0, "2", False) for n in range(5)]
    svg = plots.draw_points(points, LIGHT, title="", x="", y="")
    places = re.findall(r'<text [^>]*y="([\d.]+)"[^>]*>method \d', svg)
    places = sorted(float(place) for place in places)
    assert len(places) == 5 and all(b - a > 12 * canvas.POINT for a, b in itertools.pairwise(places))
    assert places[0] > 62 * canvas.POINT  # below the title
