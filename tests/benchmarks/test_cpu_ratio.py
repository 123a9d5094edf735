import pytest
import torch

from benchmarks.engine import cpu_ratio
from stepcache import restore
from stepcache.bench.rows import read, write


def test_a_small_run(tmp_path):
    grid = ((2, 0), (3, 1))
    rows = cpu_ratio.measure(heads=1, steps=4, repeats=2, size=8, channels=(32, 32, 32, 32), grid=grid)
    assert [(row.variant, row.interval, row.branch) for row in rows] == [
        ("original", 1, None),
        ("stepcache", 2, 0),
        ("deepcache", 2, 0),
        ("stepcache", 3, 1),
        ("deepcache", 3, 1),
    ]
    assert [row.full_steps for row in rows] == [4, 2, 2, 2, 2]
    assert rows[0].speedup == rows[0].bound == rows[0].share == 1
    for row in rows[1:]:
        assert 1 < row.bound < 2
        assert row.seconds_p20 <= row.seconds <= row.seconds_p80
        assert row.share == pytest.approx(row.speedup / row.bound)
    write(tmp_path / "rows.csv", rows)
    assert read(tmp_path / "rows.csv", cpu_ratio.Row) == rows
    assert len(cpu_ratio.table(rows).splitlines()) == 1 + len(rows)


def test_the_bound_counts_the_runs_own_full_steps():
    assert cpu_ratio.run_gain(10, 1, 2, 4) == pytest.approx(40 / 22)
    # 7 steps at interval 3 have 3 full ones, not 7 / 3.
    assert cpu_ratio.run_gain(1, 0, 3, 7) == pytest.approx(7 / 3)


def test_variants_leave_the_unet_as_it_was():
    unet = cpu_ratio.UNet2DConditionModel(
        block_out_channels=(32, 32, 32, 32), cross_attention_dim=256, attention_head_dim=1
    ).eval()
    pipe, latents, text = cpu_ratio.Loop(unet, 3), torch.randn(1, 4, 8, 8), torch.randn(2, 77, 256)
    attributes = {path: set(vars(module)) for path, module in unet.named_modules()}
    results = {}
    for name in ("original", "stepcache", "deepcache"):
        with cpu_ratio.put_on(pipe, cpu_ratio.Variant(name, 3, 1)):
            results[name] = pipe(latents, text)
        assert {path: set(vars(module)) for path, module in unet.named_modules()} == attributes
    restore(pipe)
    torch.testing.assert_close(results["stepcache"], results["deepcache"], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(results["stepcache"], results["original"])
