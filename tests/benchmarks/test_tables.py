"""The pages say what the CSVs say."""

import json
import shutil
from dataclasses import replace

import pytest
from support.bench_rows import ladder, row

from benchmarks import RESULTS, ROOT
from benchmarks.engine import gpu_code
from benchmarks.kernels import code as kernel_code
from benchmarks.kernels import model as kernel_model
from benchmarks.kernels.bench import KernelRow
from benchmarks.pages import branch_costs, kernel_tables, reference, support_matrix, tables
from stepcache.bench.rows import Rig, read, write
from stepcache.bench.schema import BenchRow
from stepcache.graphs.options import CUDA_OPTIONS

SHARE = "U-Net's share of FLOP bound"
# What comes from no CSV of results.
OF_CODE = {"two_graphs", "kernel_verdicts", *support_matrix.TABLES, *branch_costs.TABLES, *reference.TABLES}


@pytest.fixture
def results(tmp_path):
    """A function that writes rows as the named CSV and returns its folder."""

    def written(name, rows):
        write(tmp_path / name, rows)
        return tmp_path

    written.folder = tmp_path
    return written


def cells_of(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_is_what_the_csvs_make_of_it(page):
    text = page.read_text()
    assert tables.fill(text, page=page.parent) == text, "run `make tables`"


def test_every_table_and_figure_is_on_a_page():
    text = "".join(page.read_text() for page in tables.PAGES)
    for what, names in (("table", tables.TABLES), ("figure", tables.FIGURES)):
        missing = [name for name in names if f"<!-- {what}: {name} -->" not in text]
        assert not missing, f"no page has a place for {what} {missing}"


def test_another_figure_in_a_csv_makes_another_table(tmp_path):
    shutil.copytree(RESULTS, tmp_path / "results")
    path = tmp_path / "results" / "cold_start.csv"
    text = path.read_text()
    first = text.splitlines()[1].split(",")
    seconds = text.splitlines()[0].split(",").index("first_image_s")
    first[seconds] = "987654.3"
    path.write_text("\n".join([text.splitlines()[0], ",".join(first), *text.splitlines()[2:]]) + "\n")
    page = (ROOT / "docs" / "production.md").read_text()
    filled = tables.fill(page, tmp_path / "results", ROOT / "docs")
    assert filled != page and "987654.3" in filled


def test_a_cold_start_says_how_many_steps_an_image_has():
    header, _, first, *_ = cells_of(tables.TABLES["cold_start"](RESULTS))
    assert first[0] == "demo, 64 px, 20 steps" and "of which host, ms" in header


@pytest.mark.parametrize("what", ["table", "figure"])
def test_an_unknown_name(what):
    with pytest.raises(KeyError, match="no_such_thing"):
        tables.fill(f"<!-- {what}: no_such_thing -->\n<!-- end -->", RESULTS)


def test_what_a_missing_csv_would_show_is_empty(tmp_path):
    for what, names in (("table", tables.TABLES), ("figure", tables.FIGURES)):
        for name in set(names) - OF_CODE:
            empty = f"<!-- {what}: {name} -->\n<!-- end -->"
            assert tables.fill(f"<!-- {what}: {name} -->\nold\n<!-- end -->", tmp_path) == empty


def headline(folder, name="bench_headline_demo"):
    """The lines of the one table, by their first cell."""
    header, _, *lines = cells_of(tables.TABLES[name](folder))
    return {line[0]: dict(zip(header, line, strict=True)) for line in lines}


def measured(*others):
    """Eager, fewer steps and DeepCache, and other rows."""
    return [
        row("eager", 10.0, flop_bound=1.0, psnr=float("inf")),
        row("fewer-steps", 4.5, (3, 0), fewer=8, flop_bound=2.5, psnr=20.0),
        row("deepcache", 4.0, (3, 0), flop_bound=2.4, psnr=25.0),
        *others,
    ]


def test_headline_has_the_fastest_of_each_way_to_run(results):
    rows = measured(
        row("compile", 7.0, mode="default"),
        row("compile", 6.25, mode="max-autotune"),
        row("compile+fewer-steps", 3.5, (3, 0), mode="default", fewer=8, flop_bound=2.5, psnr=20.5),
        row("stepcache-eager", 3.75, (3, 0), predict="auto", flop_bound=2.4, psnr=30.0),
        row("stepcache-compiled", 2.5, (3, 0), mode="default", predict="auto", flop_bound=2.4, psnr=30.5),
        row("stepcache-graphs", None, (3, 0), predict="auto", status="not available: needs CUDA"),
    )
    lines = headline(results("bench_demo.csv", rows))
    assert list(lines) == ["original", "8 steps instead of 20", "DeepCache 0.1.1", '**stepcache**, `predict="auto"`']
    original, fewer, deepcache, ours = (list(line.values())[1:] for line in lines.values())
    assert original == ["10.0 s, 1.00x", "6.25 s, 1.60x", "1.00x", ""]
    assert fewer == ["4.50 s, 2.22x", "3.50 s, 2.86x", "2.50x", "20.0"]
    assert deepcache == ["4.00 s, 2.50x", "", "2.40x", "25.0"]
    assert ours == ["3.75 s, 2.67x", "**2.50 s, 4.00x**", "2.40x", "30.0"]
    made = tables.TABLES["bench_headline_demo"](results("bench_demo.csv", rows))
    assert "Random weights" not in made and "with no overlap of the spreads" in made


@pytest.mark.parametrize(("predict", "written"), [("auto", '"auto"'), ("0.5", "0.5"), ("1,-0.25", "(1,-0.25)")])
def test_a_prediction_is_written_as_accelerate_takes_it(results, predict, written):
    folder = results("bench_demo.csv", measured(row("stepcache-eager", 3.0, (3, 0), predict=predict)))
    assert f"| **stepcache**, `predict={written}` |" in tables.TABLES["bench_headline_demo"](folder)
    assert f"| stepcache eager, predict={written} |" in tables.TABLES["bench_demo"](folder)


@pytest.mark.parametrize(("ours", "bold"), [
    (3.0, ["stepcache-eager"]),  # 2.7 to 3.3, before DeepCache's 3.6 to 4.4
    (3.5, []),  # 3.15 to 3.85 overlaps them
    (8.0, []),  # so do fewer steps' 4.05 to 4.95
    (None, []),
])  # fmt: skip
def test_only_what_is_clearly_the_fastest_is_bold(results, ours, bold):
    rows = measured(row("stepcache-eager", ours, (3, 0), flop_bound=2.4))
    made = tables.TABLES["bench_headline_demo"](results("bench_demo.csv", rows))
    assert [key for key, text in (("stepcache-eager", "| **3.00 s, 3.33x** |"),) if text in made] == bold
    assert made.count(" x**") + made.count("x** |") == len(bold)


@pytest.mark.parametrize("repeats", [3, 2])
def test_a_rival_that_is_clearly_faster_is_bold(results, repeats):
    rows = [row("eager", 10.0), row("deepcache", 2.0, (3, 0)), row("stepcache-eager", 3.0, (3, 0), repeats=repeats)]
    made = tables.TABLES["bench_headline_demo"](results("bench_demo.csv", rows))
    assert ("| **2.00 s, 5.00x** |" in made) == (repeats == 3)  # two are no interval


@pytest.mark.parametrize("other", [
    {"command": "bench two"}, {"commit": "aaaaaaaaaaaa"}, {"cpu": "another"}, {"threads": 64}, {"torch": "2.99"},
], ids=str)  # fmt: skip
def test_a_table_has_one_run_and_the_eager_beside_it(results, monkeypatch, other):
    """A speed-up of one run under the eager of another reads as another speed-up."""
    here = replace(Rig.now(), command="bench one")
    for changes, factor, pair in (({}, 1.0, (3, 0)), (other, 1.5, (5, 0))):
        rig = replace(here, **changes)
        monkeypatch.setattr(Rig, "now", classmethod(lambda cls, rig=rig: rig))
        rows = [row("eager", 20.0 * factor, speedup=1.0), row("deepcache", 4.0, pair, speedup=5.0 * factor)]
        write(results.folder / "bench_demo.csv", rows, append=True)
    for name in ("bench_headline_demo", "bench_demo"):
        first, second = tables.TABLES[name](results.folder).split(f"torch {here.torch}", 1)
        assert "20.0" in first and "30.0" not in first and "5.00x" in first
        assert "30.0" in second and "20.0" not in second and "7.50x" in second
    assert "`bench one`" in first + second  # of the ladder; the headline leaves commands to it


def test_the_ladder_shows_the_eager_beside_each_row(results):
    """Each (interval, branch) has an eager of its own, whose row is left out of the file."""
    rows = [
        row("eager", 10.0, eager_s=10.0),
        row("deepcache", 4.0, (3, 0), eager_s=10.0),
        row("deepcache", 3.0, (5, 0), eager_s=12.0, speedup=4.0),
    ]
    header, _, *lines = cells_of(tables.TABLES["bench_demo"](results("bench_demo.csv", rows)))
    assert [line[header.index("eager beside it, s")] for line in lines] == ["10.0", "10.0", "12.0"]


def test_equal_work_is_shown_once(results):
    def of(weights):
        return [
            row("eager", 10.0, weights=weights),
            row("deepcache", 4.0, (3, 0), flop_bound=2.65, weights=weights),
            row("fewer-steps", 3.6, (5, 0), fewer=2, flop_bound=3.0, weights=weights),
            row("deepcache", 3.9, (5, 0), flop_bound=2.65, weights=weights),  # FPPFPP and FPPPPF
            row("deepcache", 5.0, (5, 1), flop_bound=2.2, weights=weights),
        ]

    made = tables.TABLES["bench_demo"](results("bench_demo.csv", of("trained")))
    assert [line[0] for line in cells_of(made)[2:]] == ["", "3, 0", "5, 0", "5, 0", "5, 1"]  # their images differ
    made = tables.TABLES["bench_demo"](results("bench_demo.csv", of("random")))
    assert [line[0] for line in cells_of(made)[2:]] == ["", "3, 0", "5, 1"]
    assert "Not shown, because in so few steps they do the same work as a pair above: interval 5, branch 0." in made


def test_the_headline_has_the_pair_that_eager_was_measured_with(results):
    """Other pairs have an eager of their own, whose seconds are not shown."""
    rows = [row("eager", 10.0), row("deepcache", 4.0, (3, 0)), row("compile", 8.0, mode="default")]
    rows += [row("deepcache", 5.0, (2, 0), eager_s=11.0, speedup=2.2), row("deepcache", 3.0, (3, 1), eager_s=11.0)]
    folder = results("bench_demo.csv", rows)
    made = tables.TABLES["bench_headline_demo"](folder)
    assert "interval 3, branch 0." in made and "4.00 s, 2.50x" in made and "8.00 s, 1.25x" in made
    assert "5.00 s" not in made and "3.00 s" not in made
    (figure,) = tables.FIGURES["first_picture"](folder)
    assert "DeepCache, eager 4.00 s" in figure.alt and "5.00 s" not in figure.alt


def test_headline_says_why_there_is_no_figure(results):
    rows = [row("eager", 10.0), row("deepcache", None, (3, 0), status="out of memory: a | b\nmore")]
    made = tables.TABLES["bench_headline_demo"](results("bench_demo.csv", rows))
    assert "| DeepCache 0.1.1 | out of memory: a \\| b more |" in made
    assert "stepcache**" not in made and "PSNR, dB" not in made  # nobody measured it


def test_random_weights_have_no_fidelity(results):
    folder = results("bench_sd21_cpu.csv", ladder(model="sd21", weights="random"))
    for name in ("bench_headline_cpu", "bench_sd21_cpu"):
        made = tables.TABLES[name](folder)
        assert "Random weights" in made and "random weights" in made
        assert not {"PSNR, dB", "SSIM"} & set(cells_of(made)[0])


def test_ladder_has_a_line_for_each_rung_in_its_order(results):
    shuffled = ladder()[::-1]
    made = tables.TABLES["bench_demo"](results("bench_demo.csv", shuffled))
    header, _, *lines = cells_of(made)
    assert [line[:2] for line in lines] == [
        ["", "eager"],
        ["", "torch.compile, default"],
        ["", "torch.compile, max-autotune"],
        ["3, 0", "DeepCache 0.1.1"],
        ["3, 0", "torch.compile + DeepCache 0.1.1, default"],
        ["3, 0", "stepcache eager"],
        ["3, 0", "stepcache compiled, default"],
        ["3, 0", "stepcache compiled + CUDA graphs"],
        ["5, 0", "DeepCache 0.1.1"],
        ["5, 0", "stepcache compiled, default"],
    ]
    eager, failed, compiled, graphs = (dict(zip(header, lines[n], strict=True)) for n in (0, 4, 6, 7))
    assert eager["PSNR, dB"] == "identical" and eager["over eager"] == "1.00x"
    assert failed["call, s (p20 to p80)"] == "failed: RuntimeError: no luck"
    assert compiled["call, s (p20 to p80)"] == "2.50 (2.25 to 2.75)"
    assert compiled["U-Net, s"] == "2.00" and compiled["first call, s"] == "5.00"
    assert graphs["call, s (p20 to p80)"] == "not available: needs CUDA" and not graphs["over eager"]
    assert "peak MiB" not in header  # nobody measured it


def test_each_cell_has_a_table(results):
    rows = [*ladder(), *ladder(height=96, peak_memory_mib=1234.5)]
    made = tables.TABLES["bench_demo"](results("bench_demo.csv", rows))
    assert made.count("| eager |") == 2
    assert "64 x 64" in made and "96 x 64" in made and "peak MiB" in made


def test_share_of_the_bound_is_that_of_skipped_work_and_a_warm_compile_is_marked(results):
    rows = [
        row("eager", 10.0, share=1.0),
        row("compile", 5.0, mode="default", share=2.0, compile_s=30.0, graphs_cached=0),
        row("stepcache-compiled", 4.0, (3, 0), mode="default", share=1.25, compile_s=3.0, graphs_cached=2),
    ]
    header, _, *lines = cells_of(tables.TABLES["bench_demo"](results("bench_demo.csv", rows)))
    shares, compiling = ([line[header.index(of)] for line in lines] for of in (SHARE, "of it compiling, s"))
    assert shares == ["", "", "125%"]
    assert compiling == ["", "30.0", "3.00 (warm)"]


def test_a_rung_measured_twice_is_shown_once(results):
    rows = [row("eager", None), row("eager", 10.0), row("eager", 12.5), row("deepcache", 4.0, (3, 0))]
    made = tables.TABLES["bench_demo"](results("bench_demo.csv", rows))
    assert made.count("| eager |") == 1 and "10.0" in made and "12.5" not in made


def test_the_rig_is_named_once(results):
    folder = results("bench_demo.csv", ladder())
    made = tables.TABLES["bench_demo"](folder)
    assert made.count("torch 2") == 1 and made.count("commit") == 1
    assert read(folder / "bench_demo.csv", BenchRow) == ladder()


def test_a_figures_place_is_seen_from_the_page(results):
    folder = results("bench_demo.csv", ladder())
    text = "<!-- figure: bench_demo_fidelity -->\n<!-- end -->"
    assert 'src="bench_demo_fidelity_1-light.svg"' in tables.fill(text, folder, page=folder)
    above = tables.fill(text, folder, page=folder.parent)
    assert f'srcset="{folder.name}/bench_demo_fidelity_1-dark.svg"' in above


def test_inductors_code_before_and_after_weights_are_re_laid(results):
    def graph(kind, weights, launches, relaid, options="{}"):
        return gpu_code.Row(
            "sd15", 512, "float16", 2, 0, kind, "reference", weights, options, launches, 100, 100, 230, 1400, "mm 9",
            relaid, 10**9, 1, 1, None, None, None, 0, 2 * 10**9, 10**9, 10**9, 10**12, 1.5, 7,
        )  # fmt: skip

    rows = [
        graph("full", "as loaded", 386, 52),
        graph("full", "channels_last", 336, 0, json.dumps(CUDA_OPTIONS)),
        graph("partial", "as loaded", 3, 4),  # no counterpart: not shown
    ]
    _, line = cells_of(tables.TABLES["gpu_code"](results("gpu_code.csv", rows)))[0::2]
    assert line[:4] == ["sd15, 512 px, full, reference joins", "386 → 336", "52 → 0", "3.00 → 3.00"]
    assert line[-1] == "100 / 230 / 1400"
    rows[1] = graph("full", "channels_last", 336, 0)  # counted with other options than today's
    _, line = cells_of(tables.TABLES["gpu_code"](results("gpu_code.csv", rows)))[0::2]
    assert line[-1] == "? / 230 / 1400"


def code(kernel, registers, loops, join=kernel_code.LARGEST, target="sm_90", mix=0, halves=False):
    constants = f"HALVES={halves} BLOCK=64"
    return kernel_code.Row(
        "op", kernel, target, "bf16", "channels_last", 2, *join, join[-1], mix, constants, 8, 3, registers, 0, 0, 900,
        loops,
    )  # fmt: skip


def test_kernels_before_and_after(results):
    small = kernel_tables.SHOWN[1]
    before = [code("channel_statistics_kernel", 80, "179; 179", join) for join in kernel_tables.SHOWN]
    results("kernel_code_before.csv", [*before, code("dual_conv1x1_kernel", 153, "6; 116; 2", target="sm_100")])
    after = [
        code("channel_statistics_kernel", 61, "119; 119"),
        code("cat_group_norm_silu_kernel", 83, "117; 176", small),
        code("dual_conv1x1_kernel", 126, "120", target="sm_100"),
    ]
    folder = results("kernel_code.csv", after)
    header, _, *lines = cells_of(tables.TABLES["kernel_code"](folder))
    sm_90, sm_100 = header.index("sm_90"), header.index("sm_100")
    assert [(line[1], line[sm_90], line[sm_100]) for line in lines] == [
        ("statistics", "80: 179, 179 → 61: 119, 119", "none → none"),
        ("shortcut", "none → none", "153: 116 → 126: 120"),  # without loops that wait for a barrier
        ("statistics", "80: 179, 179 → none", "none → none"),
        ("all in one launch", "none → 83: 117, 176", "none → none"),
    ]
    (folder / "kernel_code_before.csv").unlink()
    assert "none → 61: 119, 119" in tables.TABLES["kernel_code"](folder)


def test_kernels_that_combine_buffers(results):
    rows = [
        code("dual_conv1x1_kernel", 120, "9"),
        code("dual_conv1x1_kernel", 126, "20", mix=2),
        code("dual_conv1x1_kernel", 140, "40; 2", mix=2, halves=True, target="sm_80"),
        code("dual_conv1x1_kernel", 200, "50", kernel_tables.SHOWN[1], mix=2),  # a smaller join
    ]
    header, _, *lines = cells_of(tables.TABLES["kernel_mix"](results("kernel_code.csv", rows)))
    assert [(*line[:2], line[header.index("sm_80")], line[header.index("sm_90")]) for line in lines] == [
        ("shortcut", "one tensor", "none", "120: 9"),
        ("shortcut", "2 buffers", "none", "126: 20"),
        ("shortcut", "2 buffers, and the other half's", "140: 40", "none"),
    ]


def test_modelled_joins(results):
    def modelled(part, side, launches, us):
        return kernel_model.Row(
            "sd15", 3, 2, 640, 320, 320, 64, 64, "float16", part, side, launches, 100, 100, us
        )  # fmt: skip

    rows = [
        modelled("norm", "stepcache", 2, 14.04),
        modelled("shortcut", "stepcache", 1, 18.0),
        modelled("concat", "inductor", 1, 12.0),
        modelled("norm", "inductor", 4, 36.0),
        modelled("shortcut", "inductor", 2, 24.0),
        modelled("norm", "copy", 1, 12.0),
        modelled("shortcut", "copy", 1, 10.0),
    ]
    made = tables.TABLES["kernel_model"](results("kernel_model.csv", rows))
    _, _, line = cells_of(made)
    assert line == [
        "sd15: 640+320 to 320, 64 x 64", "3", "14.0 (2)", "36.0 (4)", "12.0", "12.0 (1)", "18.0 (1)", "24.0 (2)",
        "10.0", "32", "72",
    ]  # fmt: skip
    assert "A model, not a measurement" in made


def test_measured_joins(results):
    def measured(variant, us, status="ok"):
        return KernelRow(
            "dual_conv1x1", "sd15", 2, 2, 640, 320, 320, 64, 64, "float16", "channels_last", variant, status, us, us,
            us, 1.0, 1.0, 1.0, 0.0, 0.0, "12.8", "",
        )  # fmt: skip

    rows = [measured("triton", 20.04), measured("eager", 40.0), measured("inductor", None, "failed: RuntimeError: no")]
    made = tables.TABLES["kernel_measured"](results("bench_dual_conv1x1.csv", rows))
    header, _, line = cells_of(made)
    assert header == ["join", "dtype", "triton", "eager", "inductor"]
    assert line == ["sd15 join 2: 640+320 to 320, 64 x 64", "float16", "20.0", "40.0", "failed"]
    assert "**dual_conv1x1** (`bench_dual_conv1x1.csv`), microseconds" in made and made.count("commit") == 1
