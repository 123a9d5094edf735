"""The table of plans.csv says what the rows say."""

from dataclasses import replace

from benchmarks.frontier.plans import Row
from benchmarks.pages.plans_tables import plans_table
from stepcache.bench.rows import write

BEFORE = Row(
    scheduler="dpm++", steps=20, guidance_scale=7.5, budget=2.0, method="search", trials=24, seconds=91.8,
    schedule="FP", branch=0, guidance="both", candidate="FP", speedup_macs=2.0, psnr_calibration=27.0, psnr=26.2,
    gain=None, gain_low=None, gain_high=None, prompts=12, seeds=1,
)  # fmt: skip
AFTER = replace(
    BEFORE, method="segments", seconds=90.6, psnr=26.6, psnr_calibration=28.0, gain=0.4, gain_low=-0.8, gain_high=1.5
)


def test_a_line_for_each_setting_and_budget(tmp_path):
    sure = {"budget": 2.5, "psnr": 28.2, "gain": 2.0, "gain_low": 0.5, "gain_high": 3.5}
    write(tmp_path / "plans.csv", [BEFORE, AFTER, replace(BEFORE, budget=2.5), replace(AFTER, **sure)])
    text = plans_table(tmp_path / "plans.csv")
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert lines[2:] == [
        ["dpm++, 20 steps, guidance 7.5", "2x", "26.2", "26.6", "+0.4 (-0.8 to +1.5)", "92, 91"],
        ["dpm++, 20 steps, guidance 7.5", "2.5x", "26.2", "28.2", "**+2.0 (+0.5 to +3.5)**", "92, 91"],
    ]
    assert "commit" in text
