"""The page says of rivals.csv what is in it."""

from dataclasses import replace

import pytest

from benchmarks import RESULTS, ROOT
from benchmarks.frontier.rivals_rows import AUTO, FEWER, Row, difference, fewer_for
from benchmarks.pages.figures import LIGHT
from benchmarks.pages.rivals_pages import (
    aims_table,
    compared,
    everywhere_table,
    fewer_everywhere_table,
    fewer_table,
    rivals_figures,
)
from stepcache.bench.rows import read, write

PROMPTS, SEEDS = 4, 2
SPREAD = (-1.0, -0.5, 0.0, 0.0, 0.5, 1.0, -0.5, 0.5)  # of the images around the mean


def row(method, psnr, most, *, scheduler="ddim", steps=20, guidance=7.5, interval=2, cost=10.9, noise=0.0):
    """With a mean of `psnr`, and of `most`; noise: makes the images' differences to others uncertain."""
    signs = (1, 1, -1, -1, 1, 1, -1, -1)

    def text(mean):
        each = (mean + spread + noise * sign for spread, sign in zip(SPREAD, signs, strict=True))
        return " ".join(f"{psnr:.2f}" for psnr in each)

    return Row(
        "demo", scheduler, steps, guidance, method, interval, "F" * steps, cost, psnr, most, PROMPTS, SEEDS, 50,
        "" if psnr is None else text(psnr), text(most),
    )  # fmt: skip


def fewer(steps, most, scheduler="ddim"):
    return row(FEWER, None, most, scheduler=scheduler, steps=steps, interval=None, cost=float(steps))


ROWS = [
    row("Spectrum on outputs, own schedule", 33.0, 26.8, cost=10.0), row("Spectrum on features, even", 34.0, 26.2),
    row("hold", 30.0, 26.0), row("line", 29.0, 24.5, noise=2.0), row("fixed 1,0", 31.0, 26.0), row("auto", 31.5, 27.0),
    fewer(10, 25.0), fewer(20, 30.0),
    row("hold", 30.0, 26.0, scheduler="euler"), row("auto", 30.5, 26.5, scheduler="euler"),
    row("fixed 1,0", 32.0, 26.0, scheduler="euler"),
]  # fmt: skip


@pytest.fixture
def path(tmp_path):
    write(tmp_path / "rivals.csv", ROWS)
    return tmp_path / "rivals.csv"


def lines_of(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_the_aims(path):
    text = aims_table(path)
    header, _, ddim, euler = lines_of(text)
    assert len(header) == len(ddim) == len(euler)
    assert ddim == [
        "DDIM, guidance 7.5, 20 steps, interval 2", "1.83x", "31.5", "+1.5 (+1.5 to +1.5); ≥ 0.8: yes",
        "+0.5 (+0.5 to +0.5), fixed 1,0; ≥ -0.8: yes", "-1.5 (-1.5 to -1.5); > 0: **no**",
        "-2.5 (-2.5 to -2.5), Spectrum on features, even; > 0: **no**",
    ]  # fmt: skip
    assert euler[3:] == [
        "+0.5 (+0.5 to +0.5); ≥ 0.8: **no**", "-1.5 (-1.5 to -1.5), fixed 1,0; ≥ -0.8: **no**", "", "",
    ]  # fmt: skip
    assert "commit" in text


def test_everywhere(path):
    text = everywhere_table(path)
    hold, own, spectrum = text.split("`auto` over ")[1:]
    assert hold.startswith("hold: certainly better in 2 of 2 (DDIM 1 of 1, Euler 1 of 1).\n")
    assert lines_of(hold) == [
        ["dB", "20 steps, interval 2"], ["---"] * 2, ["DDIM, guidance 7.5", "+1.5"], ["Euler, guidance 7.5", "+0.5"],
    ]  # fmt: skip
    assert own.startswith("Spectrum, own schedule: certainly better in 0 of 1 (DDIM 0 of 1).\n")
    assert lines_of(own)[2:] == [["DDIM, guidance 7.5", "*-1.5*"]]
    assert lines_of(spectrum)[2:] == [["DDIM, guidance 7.5", "*-2.5*"]]


def test_a_grid_has_all_settings_in_order(tmp_path):
    cells = [(scheduler, steps, interval, guidance) for scheduler in ("dpm++", "ddim") for steps, interval, guidance in
             ((50, 3, 7.5), (20, 3, 7.5), (20, 2, 7.5), (20, 2, 3.0))]  # fmt: skip
    rows = []
    for i, (scheduler, steps, interval, guidance) in enumerate(cells):
        at = {"scheduler": scheduler, "steps": steps, "interval": interval, "guidance": guidance}
        rows += [row("hold", 30.0, 26.0, **at), row("auto", 30.0 + i, 26.0, **at)]
    write(tmp_path / "rivals.csv", rows)
    assert lines_of(everywhere_table(tmp_path / "rivals.csv").split("`auto` over ")[1]) == [
        ["dB", "20 steps, interval 2", "20 steps, interval 3", "50 steps, interval 3"],
        ["---"] * 4,
        ["DDIM, guidance 3", "+7.0", "", ""],
        ["DDIM, guidance 7.5", "+6.0", "+5.0", "+4.0"],
        ["DPM++ 2M, guidance 3", "+3.0", "", ""],
        ["DPM++ 2M, guidance 7.5", "+2.0", "+1.0", "*+0.0*"],
    ]


def test_aims_at_50_steps(tmp_path):
    fifty = {"steps": 50, "interval": 3, "cost": 19.8}
    rows = [
        *(row(method, psnr, psnr, **fifty) for method, psnr in (("hold", 36.0), ("auto", 38.5))),
        *(row(method, psnr, psnr, guidance=3.0, **fifty) for method, psnr in (("hold", 36.0), ("auto", 40.9))),
        row("hold", 36.0, 36.0, steps=50, interval=5), row("auto", 39.0, 36.0, steps=50, interval=5),
    ]  # fmt: skip
    write(tmp_path / "rivals.csv", rows)
    lines = lines_of(aims_table(tmp_path / "rivals.csv"))[2:]
    assert [(line[0], line[3], line[4]) for line in lines] == [
        ("DDIM, guidance 7.5, 50 steps, interval 3", "+2.5 (+2.5 to +2.5); ≥ 2: yes", "+2.5 (+2.5 to +2.5), hold"),
        ("DDIM, guidance 3, 50 steps, interval 3", "+4.9 (+4.9 to +4.9); ≥ 5: **no**", "+4.9 (+4.9 to +4.9), hold"),
    ]


def test_what_is_not_certain(tmp_path):
    rows = [row("hold", 30.0, 26.0), row("auto", 31.5, 27.0, noise=3.0), ROWS[0]]
    rows[2] = replace(rows[2], psnrs=row("", 31.0, 26.0).psnrs)
    write(tmp_path / "rivals.csv", rows)
    text = aims_table(tmp_path / "rivals.csv")
    assert "+0.5 (-2.5 to +3.5); > 0: **not certain**" in text
    assert "| *+0.5* |" in everywhere_table(tmp_path / "rivals.csv")


def test_fewer_steps(path):
    text = fewer_table(path)
    header, _, ddim = lines_of(text)  # euler has no run of 10 steps
    cells = dict(zip(header, ddim, strict=True))
    assert cells["cost in full steps"] == "10.9 (4.59x)" and cells["fewer steps: dB"] == "10: 25.0"
    assert cells["hold"] == "+1.0 (+1.0 to +1.0)" and cells["auto"] == "+2.0 (+2.0 to +2.0)"
    assert cells["line"].startswith("*-0.5 (-2.5 to +1.5") and cells["line"].endswith(")*")
    assert cells["best Spectrum"] == "+1.8 (+1.8 to +1.8)"  # nearest to 50 steps, not to as many
    assert cells["DeepCache 1:N"] == ""


def test_fewer_steps_everywhere(path):
    text = fewer_everywhere_table(path)
    assert "`hold` over fewer steps: certainly better in 1 of 1 (DDIM 1 of 1)." in text
    assert lines_of(text.split("`auto`")[1])[2:] == [["DDIM, guidance 7.5", "+2.0"]]
    assert text.endswith("Certainly better than fewer steps, of the others: line in 0 of 1, best Spectrum in 1 of 1.")


def test_an_interval_with_0_in_it_is_no_better(tmp_path):
    rows = [row("hold", 30.0, 25.3, noise=1.0), fewer(10, 25.0)]
    write(tmp_path / "rivals.csv", rows)
    text = fewer_table(tmp_path / "rivals.csv")
    assert "*+0.3 (" in text
    assert "`hold` over fewer steps: certainly better in 0 of 1 (DDIM 0 of 1)." in fewer_everywhere_table(
        tmp_path / "rivals.csv"
    )


def test_what_the_pages_say_of_auto_and_fewer_steps_is_in_the_csv():
    rows = read(RESULTS / "rivals.csv", Row)
    found = {}
    for here in compared(rows):
        if (rival := fewer_for(here.dearest, rows)) is not None:
            found[here.setting[1:], here.interval] = difference(here.best(AUTO), rival, most=True)
    open_ = [key for key, each in found.items() if not each.better]
    karras = [key for key in open_ if key[0][0] == "dpm++-karras"]
    long_runs = [key for key in found if key[0][0] == "dpm++-karras" and key[0][1] >= 30]
    of_long = len([key for key in long_runs if found[key].better]), len(long_runs)
    readme, sd, notes = (
        " ".join((ROOT / page).read_text().split())
        for page in ("README.md", "docs/models/stable-diffusion.md", "docs/notes.md")
    )
    assert f"in {len(found) - len(open_)} of {len(found)} settings" in readme
    assert f"Of the others, {len(karras)} are DPM++ 2M with Karras sigmas, and one is DPM++ 2M" in readme
    assert all(f"in {of_long[0]} of {of_long[1]} settings" in page for page in (readme, sd))
    assert f"in {len(open_)} of {len(found)} settings" in notes and f"{len(karras)} of 18 with Karras sigmas" in notes
    assert [key for key in open_ if key not in karras] == [(("dpm++", 50, 7.5), 5)]
    assert [key for key in karras if key not in long_runs] == [(("dpm++-karras", 20, 3.0), 3)]
    assert [key[0][1] for key, each in found.items() if each.high < 0] == [50] * 3  # certainly worse


def test_a_figure_for_each_scheduler(tmp_path):
    far = row("hold", 45.0, 45.0, steps=50, cost=40.0, scheduler="ddim")
    calm = replace(row("hold", 30.0, 26.0, guidance=3.0), scheduler="dpm++-karras")
    write(tmp_path / "rivals.csv", [*ROWS, far, calm, row("hold", 30.0, 26.0, scheduler="dpm++")])
    figures = rivals_figures(tmp_path / "rivals.csv")
    assert [figure.name for figure in figures] == ["rivals_ddim", "rivals_euler", "rivals_dpmpp"]  # guidance 7.5
    drawn = figures[0].draw(LIGHT)
    for words in ("demo: DDIM, guidance 7.5", "fewer steps", "DeepCache", "Spectrum", "auto"):
        assert words in drawn
    assert drawn == figures[0].draw(LIGHT) and ">50<" not in drawn  # far from all others
