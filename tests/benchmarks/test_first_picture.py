"""The README's first picture says what the rows say."""

from dataclasses import replace

import pytest
from support.bench_rows import row

from benchmarks.pages.figures import DARK, LIGHT
from benchmarks.pages.first_picture import draw, first_picture, panel
from benchmarks.pages.ladder import RATIOS, ladders
from stepcache.bench.rows import Rig, write

SD21 = {"model": "sd21", "weights": "random", "height": 256, "width": 256}


@pytest.fixture
def results(tmp_path):
    write(tmp_path / "bench_demo.csv", [
        row("eager", 10.0, unet_s=9.0, psnr=float("inf")),
        row("compile", 7.0, mode="default", psnr=99.0),
        row("compile+fewer-steps", 3.0, (3, 0), mode="default", fewer=8, psnr=20.25, flop_bound=3.5),
        row("deepcache", 4.0, (3, 0), psnr=25.0, flop_bound=3.0),
        row("stepcache-eager", 3.75, (3, 0), psnr=30.0, flop_bound=3.0),
        row("stepcache-compiled", 2.5, (3, 0), mode="default", psnr=30.5, flop_bound=3.0),
        row("stepcache-graphs", None, (3, 0), status="not available: needs CUDA"),
    ])  # fmt: skip
    write(tmp_path / "bench_sd21_cpu.csv", [
        row("eager", 20.0, **SD21), row("fewer-steps", 8.0, (3, 0), fewer=7, **SD21),
        row("compile+fewer-steps", 9.0, (3, 0), mode="default", fewer=7, **SD21),
        row("stepcache-eager", 9.0, (3, 0), psnr=12.0, **SD21),
    ])  # fmt: skip
    return tmp_path


def test_each_way_to_run_is_a_bar_of_its_fastest_row(results):
    (figure,) = first_picture(results)
    # Random weights: no PSNR. Architectures come before the demo. A bar says whether its row is compiled.
    assert figure.alt == (
        "Seconds of whole pipeline calls, and speed-up over the eager original. "
        "SD 2.1, 256 x 256, CPU: original 20.0 s; 7 steps, eager 8.00 s, 1.25x; stepcache, eager 9.00 s, 1.11x. "
        "Demo pipeline, 64 x 64, CPU: original 10.0 s; torch.compile 7.00 s, 1.43x; "
        "8 steps, compiled 3.00 s, 3.33x, 20.2 dB; DeepCache, eager 4.00 s, 2.50x, 25.0 dB; "
        f"stepcache, compiled 2.50 s, 4.00x, 30.5 dB. {RATIOS}"
    )


def test_the_drawing_has_all_of_it_and_the_mark(results):
    (figure,) = first_picture(results)
    for theme in (LIGHT, DARK):
        svg = figure.draw(theme)
        for text in (
            "stepcache, compiled",
            "stepcache, eager",
            RATIOS,
            "8 steps, compiled",
            "2.50 s, 4.00x, 30.5 dB",
            "20 steps, interval 3, float32",
            "random weights",
        ):
            assert text in svg
        assert svg == figure.draw(theme) and theme.accent in svg


def test_the_mark_is_what_skipping_work_leaves(results):
    ((key, ladder),) = ladders(results / "bench_demo.csv").items()
    one = panel(key, ladder)
    marks = {bar.name: bar.best for bar in one.bars}
    # The U-Net's 9 s are a third, and the other second is as it was.
    assert marks.pop("stepcache, compiled") == pytest.approx(1.0 + 9.0 / 3.0)
    assert set(marks.values()) == {None}
    unmarked = replace(one, bars=tuple(replace(bar, best=None) for bar in one.bars))
    assert draw([one], LIGHT).count("<path") > draw([unmarked], LIGHT).count("<path")


def test_a_cpu_beside_a_gpu_is_a_cpu(results, monkeypatch):
    rig = replace(Rig.now(), gpu="NVIDIA H100 80GB HBM3", threads=8)
    monkeypatch.setattr(Rig, "now", classmethod(lambda cls: rig))
    write(results / "bench_demo.csv", [row("eager", 10.0), row("deepcache", 4.0, (3, 0))])
    gpu = {"device": "cuda", "model": "sdxl", "weights": "random"}
    # The last two ladders answer other questions about the same model and size.
    write(results / "bench_gpu.csv", [row("eager", 9.0, **gpu), row("stepcache-graphs", 2.0, (3, 0), **gpu)])
    for command, rows in (("b", [row("stepcache-graphs", 1.0, (3, 0), **gpu)]), ("c", [row("eager", 8.0, **gpu)])):
        other = replace(rig, command=command)
        monkeypatch.setattr(Rig, "now", classmethod(lambda cls, other=other: other))
        write(results / "bench_gpu.csv", rows, append=True)
    (figure,) = first_picture(results)
    assert "Demo pipeline, 64 x 64, CPU: original 10.0 s" in figure.alt
    assert (
        figure.alt.count("H100") == 1
        and "SDXL, 64 x 64, H100: original 9.00 s; stepcache, compiled 2.00 s" in figure.alt
    )
    assert "8 threads" in figure.draw(LIGHT)


def test_without_rows_there_is_no_picture(tmp_path):
    assert first_picture(tmp_path) is None


def test_identical_images_are_called_so(tmp_path):
    rows = [row("eager", 10.0), row("stepcache-eager", 5.0, (1, 0), psnr=float("inf"))]
    write(tmp_path / "bench_demo.csv", rows)
    (figure,) = first_picture(tmp_path)
    assert "stepcache, eager 5.00 s, 2.00x, identical." in figure.alt
