"""The tables of ideas.csv and stability.csv say what the rows say."""

from dataclasses import replace

from benchmarks.frontier import ideas, stability
from benchmarks.pages.ideas_tables import ideas_table, stability_table
from stepcache.bench.rows import write

ROW = ideas.Row(
    scheduler="dpm++", steps=20, guidance_scale=7.5, interval=2, idea=ideas.BASELINE, setting="1, 0", variants=5,
    cost=10.0, psnr_calibration=31.0, psnr=30.0, baseline="1, 0", baseline_psnr=30.0, gain=0.0, gain_error=0.0,
    prompts=12, seeds=1,
)  # fmt: skip


def cells(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_gains_over_the_best_pair_and_their_costs(tmp_path):
    worse = replace(ROW, setting="hold", psnr=28.0, gain=-2.0)
    three = [replace(row, interval=3, psnr=row.psnr - 5) for row in (ROW, worse)]
    tried = {
        "pays": replace(ROW, idea="pays", gain=0.8, gain_error=0.3, cost=10.6),
        "may be chance": replace(ROW, idea="may be chance", gain=0.8, gain_error=0.5),
        "little": replace(ROW, idea="little", gain=0.4, gain_error=0.1, cost=9.5),
        "nothing": replace(ROW, idea="nothing", gain=-0.04, cost=9.96),
    }
    dearer = replace(tried["nothing"], interval=3, cost=10.5)
    elsewhere = replace(tried["little"], interval=3, gain=-1.25, cost=9.0)
    write(tmp_path / "ideas.csv", [worse, ROW, *three, *tried.values(), elsewhere, dearer])
    header, _, *lines = cells(ideas_table(tmp_path / "ideas.csv"))
    assert header[1:3] == ["dpm++, 20 steps, g 7.5, interval 2", "dpm++, 20 steps, g 7.5, interval 3"]
    assert lines == [
        ["the best fixed pair, dB", "30.0 (1, 0)", "25.0 (1, 0)", ""],
        ["pays", "**+0.8 ± 0.3**", "", "+6 %"],
        ["may be chance", "+0.8 ± 0.5", "", "same"],
        ["little", "+0.4 ± 0.1", "-1.2 ± 0.1", "-10 to -5 %"],
        ["nothing", "+0.0 ± 0.0", "+0.0 ± 0.0", "+0 to +5 %"],
    ]


def test_limits_and_growths_at_both_orders(tmp_path):
    row = stability.Row(1, 3.0, 1, 0.0, 0.0, 2.0, 0.1, 4)
    line = {"interval": 2, "mean": 1.0, "difference": 1.0}
    rows = [
        row, replace(row, order=2, limit=1.0, growth=0.2), replace(row, **line, limit=0.67, growth=0.3),
        replace(row, **line, order=2, limit=0.4, growth=0.4),
    ]  # fmt: skip
    write(tmp_path / "stability.csv", [replace(each, guidance_scale=scale) for scale in (7.5, 3.0) for each in rows])
    header, _, *lines = cells(stability_table(tmp_path / "stability.csv"))
    assert header == ["mean, difference", "limit of the model", "growth at guidance 3", "growth at guidance 7.5"]
    assert lines == [
        ["full steps only", "2.00 → 1.00", "0.10 → 0.20", "0.10 → 0.20"],
        ["interval 2, 1, 1", "0.67 → 0.40", "0.30 → 0.40", "0.30 → 0.40"],
    ]
