"""Writes the tables and figures of the pages from the CSVs in `results/`: `make tables`.

Never edit what is between `<!-- table: NAME -->` or `<!-- figure: NAME -->` and `<!-- end -->` by hand:
tests/benchmarks/test_tables.py fails if it differs from the CSVs. Without its CSV, a table is empty. Four kinds come
from code instead of a CSV: what is supported, from the tests' tables (support_matrix.py); what branches cost, counted
(branch_costs.py); the reference, from docstrings (reference.py); and the package's verdicts on kernels. A figure is two
SVGs in `results/`, light and dark, which are written together with the pages.
"""

from __future__ import annotations

import functools
import json
import os.path
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from benchmarks import RESULTS, ROOT
from benchmarks.engine import cold_start, cpu_ratio, gpu_code, host_overhead, rest_of_loop
from benchmarks.pages import branch_costs, reference, support_matrix, two_graphs
from benchmarks.pages.bench_tables import headline_tables, ladder_tables
from benchmarks.pages.figures import Figure
from benchmarks.pages.first_picture import first_picture
from benchmarks.pages.frontier_pages import frontier_figures, frontier_table
from benchmarks.pages.ideas_tables import ideas_table, stability_table
from benchmarks.pages.kernel_tables import (
    kernel_code_table,
    kernel_measured_table,
    kernel_mix_table,
    kernel_model_table,
)
from benchmarks.pages.markdown_table import caption, table
from benchmarks.pages.model_tables import GPU_MODELS, auto_range_table, gpu_table, verdicts_table
from benchmarks.pages.plans_tables import plans_table
from benchmarks.pages.plots import fidelity_figures, ladder_figures
from benchmarks.pages.rivals_pages import (
    aims_table,
    everywhere_table,
    fewer_everywhere_table,
    fewer_table,
    rivals_figures,
)
from stepcache.bench.rows import Rig, read
from stepcache.files.replacing import write_text
from stepcache.graphs.options import CUDA_OPTIONS

Made = TypeVar("Made")
PAGES = (
    ROOT / "README.md", RESULTS / "README.md", ROOT / "csrc_triton" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
)  # fmt: skip


def cpu_ratio_table(path: Path) -> str:
    """Speed-ups of stepcache and DeepCache's helper over the original, with the FLOP bound."""
    rows, rigs = read(path, cpu_ratio.Row), read(path, Rig)
    lines = []
    settings = dict.fromkeys((rig.threads, r.heads, r.interval, r.branch) for r, rig in zip(rows, rigs, strict=True))
    for threads, heads, interval, branch in settings:
        if branch is None or threads > 1:  # these are in the CSV only
            continue
        found = {
            r.variant: r
            for r, rig in zip(rows, rigs, strict=True)
            if (rig.threads, r.heads, r.interval, r.branch) == (threads, heads, interval, branch)
        }
        ours, theirs = found["stepcache"], found["deepcache"]
        # Bold: the faster one, if the spreads do not overlap.
        both = (
            f"**{one.speedup:.2f}x**" if one.speedup_p20 > other.speedup_p80 else f"{one.speedup:.2f}x"
            for one, other in ((ours, theirs), (theirs, ours))
        )
        lines.append(
            (
                f"{interval}, {branch}", f"{heads}", *both, f"{ours.bound:.2f}x", f"{ours.reachable:.2f}x",
            )
        )  # fmt: skip
    header = ("interval, branch", "heads", "stepcache", "DeepCache 0.1.1", "FLOP bound", "bare forwards")
    return table(header, lines) + "\n" + caption(read(path, Rig)[:1])


def host_overhead_table(path: Path) -> str:
    """Microseconds per U-Net call."""
    lines = [
        (row.method, row.variant, f"{row.interval}", f"{row.call:.0f}", f"{row.added:+.0f}")
        for row in read(path, host_overhead.Row)
    ]
    return (
        table(("method", "variant", "interval", "µs per call", "added µs"), lines) + "\n" + caption(read(path, Rig)[:1])
    )


def cold_start_table(path: Path) -> str:
    """Seconds to the first image, and later ones."""
    lines = [
        (
            f"{row.model}, {row.pixels} px, {row.steps} steps", row.variant, f"{row.first_image_s:.1f}",
            f"{row.compile_s:.1f}", f"{row.steady_s:.3f}", f"{row.steady_speedup_over_eager:.2f}x",
            f"{row.full_ms:.1f}", f"{row.partial_ms:.1f}", _host(row),
        )
        for row in read(path, cold_start.Row)
    ]  # fmt: skip
    header = (
        "model", "graphs", "first image, s", "compiling, s", "later images, s", "over eager", "full call, ms",
        "partial call, ms", "of which host, ms",
    )  # fmt: skip
    return table(header, lines) + "\n" + caption(read(path, Rig)[:1])


def _host(row: cold_start.Row) -> str:
    if row.full_host_us is None or row.partial_host_us is None:
        return ""
    return f"{row.full_host_us / 1e3:.1f}, {row.partial_host_us / 1e3:.1f}"


def gpu_code_table(path: Path) -> str:
    """Inductor's code for an H100: each graph with weights as loaded, and in channels_last."""
    found: dict[tuple[str, str, str], dict[str, gpu_code.Row]] = {}
    for row in read(path, gpu_code.Row):
        found.setdefault((row.model, row.kind, row.join), {})[row.weights] = row
    lines = []
    for (model, kind, join), rows in found.items():
        if set(rows) != set(gpu_code.WEIGHTS):
            continue
        before, after = (rows[weights] for weights in gpu_code.WEIGHTS)
        pairs = (
            (f"{before.launches}", f"{after.launches}"),
            (f"{before.relaid_weights}", f"{after.relaid_weights}"),
            (_gb(before.read_bytes + before.written_bytes), _gb(after.read_bytes + after.written_bytes)),
            (f"{before.bound_ms:.2f}", f"{after.bound_ms:.2f}"),
        )
        joined = "" if after.join_launches is None else f"{after.join_launches}, {after.join_copies}"
        # The row may have been counted with other options than today's.
        ours = f"{after.configs}" if json.loads(after.options) == CUDA_OPTIONS else "?"
        configs = ours, f"{after.configs_torch}", f"{after.configs_descent}"
        lines.append(
            (f"{model}, {before.pixels} px, {kind}, {join} joins", *map(" → ".join, pairs), joined, " / ".join(configs))
        )
    header = (
        "graph", "Triton launches", "of which re-lay a weight", "GB by Triton kernels", "bound, ms",
        "at our joins: launches, copies", "configurations: default / Inductor's own / coordinate descent",
    )  # fmt: skip
    return table(header, lines) + "\n" + caption(read(path, Rig))


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f}"


def rest_of_loop_table(path: Path) -> str:
    """The share of each part of a call, and the whole call's seconds."""
    parts = [part for part in rest_of_loop.PARTS if part != "whole"]
    found: dict[str, dict[str, rest_of_loop.Row]] = {}
    for row in read(path, rest_of_loop.Row):
        found.setdefault(row.variant, {})[row.part] = row
    lines = [
        (variant, *(f"{100 * row[part].share:.1f} %" for part in parts), f"{row['whole'].seconds:.3f}")
        for variant, row in found.items()
    ]
    return table(("variant", *parts, "whole call, s"), lines) + "\n" + caption(read(path, Rig)[:1])


def csv(make: Callable[[Path], Made], *names: str) -> Callable[[Path], Made | None]:
    """`make` for the first of these files that exists in a folder; None if there is none."""

    def made(results: Path) -> Made | None:
        there = [results / name for name in names if (results / name).exists()]
        return make(there[0]) if there else None

    return made


TABLES: dict[str, Callable[[Path], str | None]] = {
    "cpu_ratio": csv(cpu_ratio_table, "cpu_ratio.csv"),
    "host_overhead": csv(host_overhead_table, "host_overhead.csv"),
    "cold_start": csv(cold_start_table, "cold_start.csv"),
    "gpu_code": csv(gpu_code_table, "gpu_code.csv"),
    "bench_headline_gpu": csv(headline_tables, "bench_gpu.csv"),
    "bench_headline_cpu": csv(headline_tables, "bench_sd21_cpu.csv"),
    "bench_headline_sdxl_cpu": csv(headline_tables, "bench_sdxl_cpu.csv"),
    "bench_headline_demo": csv(headline_tables, "bench_demo.csv"),
    "bench_gpu": csv(ladder_tables, "bench_gpu.csv"),
    "bench_sd21_cpu": csv(ladder_tables, "bench_sd21_cpu.csv"),
    "bench_sdxl_cpu": csv(ladder_tables, "bench_sdxl_cpu.csv"),
    "bench_demo": csv(ladder_tables, "bench_demo.csv"),
    "frontier": csv(frontier_table, "frontier.csv"),
    "rivals_aims": csv(aims_table, "rivals.csv"),
    "rivals_everywhere": csv(everywhere_table, "rivals.csv"),
    "rivals_fewer": csv(fewer_table, "rivals.csv"),
    "rivals_fewer_everywhere": csv(fewer_everywhere_table, "rivals.csv"),
    "plans": csv(plans_table, "plans.csv"),
    "ideas": csv(ideas_table, "ideas.csv"),
    "stability": csv(stability_table, "stability.csv"),
    "rest_of_loop": csv(rest_of_loop_table, "rest_of_loop.csv"),
    "kernel_code": csv(kernel_code_table, "kernel_code.csv"),
    "kernel_mix": csv(kernel_mix_table, "kernel_code.csv"),
    "kernel_model": csv(kernel_model_table, "kernel_model.csv"),
    "kernel_measured": kernel_measured_table,
    **support_matrix.TABLES,
    **branch_costs.TABLES,
    **reference.TABLES,
    **{f"gpu_{model}": csv(functools.partial(gpu_table, model=model), "bench_gpu.csv") for model in GPU_MODELS},
    "auto_range": csv(auto_range_table, "dampings.csv"),
    "kernel_verdicts": verdicts_table,
}

FIGURES: dict[str, Callable[[Path], list[Figure] | None]] = {
    "two_graphs": lambda results: [two_graphs.FIGURE],
    "first_picture": first_picture,
    "bench_gpu_ladder": csv(ladder_figures, "bench_gpu.csv"),
    "bench_sd21_cpu_ladder": csv(ladder_figures, "bench_sd21_cpu.csv"),
    "bench_sdxl_cpu_ladder": csv(ladder_figures, "bench_sdxl_cpu.csv"),
    "bench_demo_ladder": csv(ladder_figures, "bench_demo.csv"),
    "bench_demo_fidelity": csv(fidelity_figures, "bench_demo.csv"),
    "frontier": csv(frontier_figures, "frontier.csv"),
    "rivals": csv(rivals_figures, "rivals.csv"),
}


def fill(text: str, results: Path = RESULTS, page: Path = ROOT) -> str:
    """`text`, of a page in the folder `page`, with new contents between its markers.

    KeyError for an unknown table or figure.
    """
    folder = f"{os.path.relpath(results, page)}/" if page != results else ""

    def made(match: re.Match[str]) -> str:
        what, name = match[1], match[2]
        if what == "table":
            body = TABLES[name](results)
        else:
            body = "\n".join(figure.picture(folder) for figure in FIGURES[name](results) or [])
        return f"<!-- {what}: {name} -->\n" + (f"{body}\n" if body else "") + "<!-- end -->"

    return re.sub(r"<!-- (table|figure): (\w+) -->\n.*?<!-- end -->", made, text, flags=re.DOTALL)


def figure_files(results: Path = RESULTS) -> dict[str, str]:
    """The text of all SVGs, by file name."""
    made = [figure for figures in FIGURES.values() for figure in figures(results) or []]
    return {name: text for figure in made for name, text in figure.files().items()}


def main() -> None:
    """Write the figures and fill the pages."""
    for name, text in figure_files().items():
        write_text(RESULTS / name, text)
    for page in PAGES:
        write_text(page, fill(page.read_text(), page=page.parent))


if __name__ == "__main__":
    main()
