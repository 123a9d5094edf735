"""Rows of plans.csv: both ways to calibrate, on the same pictures."""

import pytest
from support.bench_tiny import tiny_pipe
from support.macs import macs_counted_once

from benchmarks.frontier import plans
from stepcache import accelerate, calibration, restore
from stepcache.bench.rows import write
from stepcache.calibration import laboratory
from stepcache.calibration.segments import SegmentMeter
from stepcache.images.fidelity import psnr

PROMPTS = ["rose", "tulip", "fox face", "lemon", "panda face", "tiger face", "red apple", "mushroom"]
QUICK = {"held_out": PROMPTS[:3], "seeds": (1, 2), "budgets": (1.5, 2.0), "trials": {"search": 3, "segments": 2}}


def test_both_ways_make_plans_for_all_budgets(tmp_path, monkeypatch):
    tables, table = [], SegmentMeter.table
    monkeypatch.setattr(SegmentMeter, "table", lambda *args: tables.append(args) or table(*args))
    present = calibration._search
    pipe = tiny_pipe()
    with macs_counted_once(laboratory):
        rows = list(plans.measure(pipe, ("ddim", 4, 3.0), calibration=PROMPTS, **QUICK))
        assert tables and calibration._search is present
        assert [(row.budget, row.method) for row in rows] == [
            (budget, method) for budget in (1.5, 2.0) for method in ("search", "segments")
        ]
        for row in rows:
            assert row.speedup_macs >= row.budget and len(row.schedule) == 4 and row.seconds > 0
            assert (row.gain is None) == (row.method == "search")
        for search, segments in zip(rows[::2], rows[1::2], strict=True):
            assert segments.gain == pytest.approx(segments.psnr - search.psnr, abs=1e-6)
            assert segments.gain_low <= segments.gain <= segments.gain_high
        write(tmp_path / "plans.csv", rows)
        tables.clear()
        found = plans.calibrated(pipe, "search", ("ddim", 4, 3.0), PROMPTS, (1.5,), 3)
        assert not tables
    plan = found.plans[1.5]
    originals = plans.images(pipe, PROMPTS[:3], (1, 2), 4, 3.0)
    accelerate(pipe, plan=plan)
    close = psnr(plans.images(pipe, PROMPTS[:3], (1, 2), 4, 3.0), originals)
    restore(pipe)
    assert plan.mask == rows[0].schedule and float(close.mean()) == pytest.approx(rows[0].psnr, abs=1e-3)
