"""Images are compared with the same schedule uncompiled; a variant with wrong images has no figures."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from support.bench_tiny import spec, tiny_model
from support.macs import macs_counted_once

from stepcache.bench import cell as cell_module
from stepcache.bench import grid
from stepcache.bench.agreement import TOLERANCE, agreements, difference
from stepcache.bench.calls import Timed
from stepcache.bench.entries import Entry
from stepcache.bench.rows import Rig, read, write
from stepcache.bench.schema import BenchRow
from stepcache.bench.spec import LADDER
from stepcache.bench.table import table
from stepcache.bench.variants import Variant
from stepcache.errors import InvalidSetting

EAGER = np.random.default_rng(0).random((1, 8, 8, 3)).astype(np.float32)
REUSED = 1 - EAGER
PIPE = SimpleNamespace(unet=SimpleNamespace(up_blocks=[SimpleNamespace(resnets=[0, 1, 2])] * 4))


def entry(key, images, mode="", interval=3, branch=0, kinds="FPPF", calls=4):
    pair = (interval, branch) if key not in ("eager", "compile") else (None, None)
    kinds = kinds if "stepcache" in key else ""
    return Entry(Variant(key, mode, *pair), pipe=PIPE, kinds=kinds, repeats=[Timed(images, 1.0, 1.0, calls)])


def judged(*entries, dtype="float16"):
    found = agreements(entries, dtype)
    return [found[id(each)] for each in entries]


def off(images, by):
    """Images with this `difference` from the given ones."""
    return images + np.where(np.indices(images.shape).sum(0) % 2, 1, -1) * by * images.std()


def test_difference_is_a_share_of_the_contrast():
    assert difference(EAGER, EAGER) == 0
    assert difference(off(EAGER, 0.2), EAGER) == pytest.approx(0.2)
    gray = 0.5 + (EAGER - 0.5) * 1e-3  # as from random weights
    assert difference(0.5 + (off(EAGER, 0.2) - 0.5) * 1e-3, gray) == pytest.approx(0.2, rel=1e-3)
    assert difference(np.zeros((1, 2, 2, 3)), np.zeros((1, 2, 2, 3))) == 0
    assert difference(np.ones((1, 2, 2, 3)), np.zeros((1, 2, 2, 3))) == float("inf")


def test_each_variant_is_held_to_what_computes_the_same():
    keys = ["eager", "compile", "deepcache", "compile+deepcache", "stepcache-eager", "stepcache-compiled"]
    keys += ["stepcache-graphs", "stepcache-triton"]
    entries = [entry(key, EAGER if key in ("eager", "compile") else REUSED) for key in keys]
    names = [LADDER.get(key, "") for key in ("", "eager", "", "deepcache", "deepcache", *["stepcache-eager"] * 3)]
    assert [found.reference for found in judged(*entries)] == names
    assert all(not found.wrong for found in judged(*entries))
    assert [found.difference for found in judged(*entries)] == [None, 0, None, 0, 0, 0, 0, 0]


def test_without_reuse_it_is_held_to_the_original():
    plain, ours = entry("eager", EAGER), entry("stepcache-graphs", EAGER, interval=1, kinds="FFFF")
    eager = entry("stepcache-eager", REUSED, interval=1, kinds="FFFF")
    _, of_ours, of_eager = judged(plain, ours, eager)
    assert of_ours.reference == of_eager.reference == "eager" and not of_ours.wrong
    assert of_eager.wrong.startswith("images are wrong: ") and of_eager.wrong.endswith("away from eager")


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_tolerance_is_that_of_the_dtype(dtype):
    reference = entry("stepcache-eager", REUSED)
    for by, wrong in ((0.9 * TOLERANCE[dtype], False), (1.1 * TOLERANCE[dtype], True)):
        _, found = judged(reference, entry("stepcache-graphs", off(REUSED, by)), dtype=dtype)
        assert found.difference == pytest.approx(by) and bool(found.wrong) == wrong
    assert TOLERANCE["float32"] <= TOLERANCE["float16"] < 0.4  # a frozen input was 0.4 off


def test_images_that_are_not_finite():
    nan = np.full_like(EAGER, np.nan)
    reference, bad = entry("stepcache-eager", REUSED), entry("stepcache-graphs", nan)
    assert judged(reference, bad)[1].wrong == "images are wrong: not finite, while those of stepcache eager are"
    both = judged(entry("stepcache-eager", nan), bad)[1]
    assert not both.wrong and both.difference is None and both.reference == "stepcache eager"


def test_what_agrees_with_a_wrong_reference_is_wrong_too():
    plain, theirs = entry("eager", EAGER), entry("deepcache", REUSED)
    _, _, eager, graphs = judged(plain, theirs, entry("stepcache-eager", EAGER), entry("stepcache-graphs", EAGER))
    assert "away from DeepCache" in eager.wrong and graphs.difference == 0
    assert graphs.wrong == "images are wrong: like those of stepcache eager"


def test_deepcache_is_a_reference_only_where_it_counts_alike():
    theirs = entry("deepcache", EAGER)
    heun = entry("stepcache-eager", REUSED, kinds="FFPPPP", calls=6)
    assert judged(entry("deepcache", EAGER, calls=6), heun)[1].reference == ""
    two = SimpleNamespace(unet=SimpleNamespace(up_blocks=[SimpleNamespace(resnets=[0, 1])] * 3))
    assert judged(theirs, replace(entry("stepcache-eager", REUSED, branch=2), pipe=two))[1].reference == ""
    assert judged(theirs, replace(entry("stepcache-eager", REUSED, branch=1), pipe=two))[1].wrong
    assert judged(theirs, entry("stepcache-eager", REUSED, branch=4))[1].wrong


# The whole of a grid.


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(grid, "load", lambda *args: tiny_model())
    with macs_counted_once(grid):
        yield


def test_a_rows_agreement_is_in_its_columns(tiny, tmp_path):
    """For a compiled variant see test_bench_grid.py."""
    rows = grid.run_grid(spec(reuse=[(3, 0)], repeats=1), tmp_path / "rows.csv")
    assert [row.status for row in rows] == ["ok"] * 3
    assert [row.reference for row in rows] == ["", "", "DeepCache 0.1.1"]
    assert rows[0].difference is rows[1].difference is None
    assert 0 <= rows[2].difference < 1e-3
    assert read(tmp_path / "rows.csv", BenchRow) == rows


def test_wrong_images_have_a_reason_and_no_figures(tiny, tmp_path, monkeypatch):
    run = cell_module.timed

    def wrong(call, pipe, clock, steps):
        result = run(call, pipe, clock, steps)
        return replace(result, images=1 - result.images) if getattr(pipe, "wrong", False) else result

    put_on = Variant.put_on

    def marked(self, pipe, backend):
        mine = put_on(self, pipe, backend)
        mine.wrong = self.key == "stepcache-eager"
        return mine

    monkeypatch.setattr(cell_module, "timed", wrong)
    monkeypatch.setattr(Variant, "put_on", marked)
    rows = grid.run_grid(spec(reuse=[(3, 0)], repeats=1), tmp_path / "rows.csv")
    assert [row.status.split(":")[0] for row in rows] == ["ok", "ok", "images are wrong"]
    assert rows[2].status.endswith("of their contrast away from DeepCache 0.1.1")
    assert rows[2].difference > 0.5 and rows[2].repeats == 1 and rows[2].kinds == "FPPF"
    figures = [name for name in BenchRow.__annotations__ if name.endswith(("_s", "_p20", "_p80"))]
    for name in [*figures, "speedup", "unet_speedup", "flop_bound", "share", "psnr", "ssim", "peak_memory_mib"]:
        assert getattr(rows[2], name) is None, name
    line = next(line for line in table(rows).splitlines() if line.startswith("stepcache eager"))
    assert "images are wrong" in line and "x" not in line.split("images")[0]


def test_rows_from_before_these_columns_are_read(tmp_path):
    old = {name: kind for name, kind in BenchRow.__annotations__.items() if name not in ("reference", "difference")}
    values = dict.fromkeys(old, 1) | {"interval": None, "branch": None, "status": "ok"}
    row = BenchRow(**{name: str(value) if old[name] == "str" else value for name, value in values.items()})
    write(tmp_path / "rows.csv", [row])
    lines = [line.split(",") for line in (tmp_path / "rows.csv").read_text().splitlines()]
    places = [lines[0].index(name) for name in ("reference", "difference")]
    kept = [",".join(cell for i, cell in enumerate(line) if i not in places) for line in lines]
    (tmp_path / "rows.csv").write_text("\n".join(kept) + "\n")
    assert read(tmp_path / "rows.csv", BenchRow) == [row]
    (tmp_path / "rows.csv").write_text((tmp_path / "rows.csv").read_text().replace("gpu", "xpu", 1))
    with pytest.raises(InvalidSetting, match="there is no column gpu"):
        read(tmp_path / "rows.csv", Rig)
