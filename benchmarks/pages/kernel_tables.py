"""The tables of `csrc_triton/README.md`: size of the kernels' code, modelled times, measured times."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

from benchmarks.kernels import code as kernel_code
from benchmarks.kernels import model as kernel_model
from benchmarks.kernels.bench import KernelRow
from benchmarks.pages.markdown_table import caption, table
from benchmarks.pages.trusted import sifted
from stepcache.bench.rows import Rig, read

BEFORE = "kernel_code_before.csv"
MEASURED = "bench_cat_group_norm_silu.csv", "bench_dual_conv1x1.csv"
SHOWN = kernel_code.LARGEST, (1280, 1280, 1280, 16)
TARGETS = "sm_80", "sm_90", "sm_100", "gfx942"
ROLES = {
    "channel_statistics_kernel": "statistics",
    "normalize_silu_kernel": "normalise, SiLU",
    "dual_conv1x1_kernel": "shortcut",
}
"""What each kernel does. One that is not here is the norm in one launch."""
ONE_LAUNCH = "all in one launch"
SHORT = 8
"""Loops of at most this many instructions are not shown: most wait for a barrier."""


def kernel_code_table(path: Path) -> str:
    """Registers and loops of each kernel at a large and a small join: the first kernels' and today's."""
    then = path.with_name(BEFORE)
    before, after = (_code(read(p, kernel_code.Row) if p.exists() else []) for p in (then, path))
    lines = []
    for size in SHOWN:
        for role in (*list(ROLES.values())[:2], ONE_LAUNCH, "shortcut"):
            cells = [[found.get((size, role, target), "none") for found in (before, after)] for target in TARGETS]
            if any(cell != "none" for pair in cells for cell in pair):
                lines.append((_size(*size), role, *(" → ".join(pair) for pair in cells)))
    notes = (
        "bf16, channels_last. Registers per thread: instructions of each loop, before → after. Loops of up to "
        f"{SHORT} instructions are left out; most wait for a barrier. If a program takes one of two branches, one for "
        "each input, the loops of both are listed."
    )
    return (
        table(("join", "kernel", *TARGETS), lines)
        + f"\n\n{notes}\n"
        + caption([*(read(then, Rig)[:1] if then.exists() else []), *read(path, Rig)[:1]])
    )


def kernel_mix_table(path: Path) -> str:
    """Registers and loops of each kernel at the largest join, by the buffers that its hidden state is combined from."""
    rows = [r for r in read(path, kernel_code.Row) if r.dtype == "bf16" and _join(r) == kernel_code.LARGEST]
    kinds = dict.fromkeys((r.mix, r.halves) for r in rows)
    found = {(ROLES.get(r.kernel, ONE_LAUNCH), r.mix, r.halves, r.target): _loops(r) for r in rows}
    lines = []
    for role, (mix, halves) in itertools.product(ROLES.values(), kinds):
        cells = [found.get((role, mix, halves, target), "none") for target in TARGETS]
        if set(cells) != {"none"}:
            lines.append((role, _buffers(mix, halves), *cells))
    return table(("kernel", "hidden state from", *TARGETS), lines)


def _buffers(mix: int, halves: bool) -> str:
    if not mix:
        return "one tensor"
    return f"{mix} buffers" + ", and the other half's" * halves


def _join(r: kernel_code.Row) -> tuple[int, int, int, int]:
    return r.hidden, r.skip, r.out, r.height


def _code(rows: Iterable[kernel_code.Row]) -> dict[tuple[tuple[int, ...], str, str], str]:
    """Registers and loops by join, role and target."""
    return {
        (_join(r), ROLES.get(r.kernel, ONE_LAUNCH), r.target): _loops(r)
        for r in rows
        if r.dtype == "bf16" and not r.mix
    }


def _loops(row: kernel_code.Row) -> str:
    loops = [loop for loop in row.loops.split("; ") if loop and int(loop) > SHORT]
    return f"{row.registers}: {', '.join(loops)}" if loops else f"{row.registers}"


def _size(hidden: int, skip: int, out: int, height: int) -> str:
    return f"{hidden}+{skip} to {out}, {height} x {height}"


def kernel_model_table(path: Path) -> str:
    """Modelled microseconds of each join, stepcache's and Inductor's: norm, concat, shortcut and their sum."""
    joins: dict[tuple[str, int, int, int, int, int], dict[tuple[str, str], kernel_model.Row]] = {}
    for row in read(path, kernel_model.Row):
        join = row.model, row.joins, row.hidden, row.skip, row.out, row.height
        joins.setdefault(join, {})[row.side, row.part] = row
    lines = []
    for (model, count, *size), rows in joins.items():

        def cell(side: str, part: str, rows: dict[tuple[str, str], kernel_model.Row] = rows) -> str:
            row = rows[side, part]
            return f"{row.us:.1f}" + (f" ({row.launches})" if side != "copy" else "")

        ours, theirs = (
            sum(row.us for (of, _), row in rows.items() if of == side) for side in ("stepcache", "inductor")
        )
        lines.append(
            (
                f"{model}: {_size(*size)}", f"{count}", cell("stepcache", "norm"), cell("inductor", "norm"),
                cell("copy", "norm"), cell("inductor", "concat"), cell("stepcache", "shortcut"),
                cell("inductor", "shortcut"), cell("copy", "shortcut"), f"{ours:.0f}", f"{theirs:.0f}",
            )
        )  # fmt: skip
    header = (
        "join", "joins of this size", "norm: ours", "Inductor", "copy", "concat: Inductor", "shortcut: ours",
        "Inductor", "copy", "all: ours", "Inductor",
    )  # fmt: skip
    notes = (
        "**A model, not a measurement**: microseconds on an H100, with the number of launches in brackets; fp16, "
        "channels_last, batch 2. Nothing was run. All launches of both sides go through one formula, from their bytes, "
        "their waits for memory and the instructions of their machine code (`benchmarks/kernels/times.py` says what it "
        "leaves out). It may be off by 25 to 30 %, and more at small joins. The shortcut's matrix product is modelled "
        "alike on both sides, with stepcache's tiles and without its instructions: the library may be faster or "
        "slower. `copy` reads and writes what is needed once."
    )
    return table(header, lines) + f"\n\n{notes}\n" + caption(read(path, Rig)[:1])


def kernel_measured_table(results: Path) -> str | None:
    """Measured microseconds of each variant of both ops, join by join; None if nothing was measured."""
    there = [results / name for name in MEASURED if (results / name).exists()]
    return "\n\n".join(_measured(path) for path in there) or None


def _measured(path: Path) -> str:
    rows, rigs, left_out = sifted(path, KernelRow)
    title = f"**{path.stem.removeprefix('bench_')}** (`{path.name}`)"
    if not rows:
        return f"{title}. {left_out}"
    variants = list(dict.fromkeys(row.variant for row in rows))
    joins: dict[tuple[str, int, str, str], dict[str, str]] = {}
    for r in rows:
        join = r.model, r.join, _size(r.hidden, r.skip, r.out, r.height), r.dtype
        joins.setdefault(join, {})[r.variant] = f"{r.us:.1f}" if r.us is not None else r.status.partition(":")[0]
    lines = [
        (f"{model} join {index}: {size}", dtype, *(found.get(variant, "") for variant in variants))
        for (model, index, size, dtype), found in joins.items()
    ]
    made = f"{title}, microseconds\n\n" + table(("join", "dtype", *variants), lines)
    return made + (f"\n\n{left_out}" if left_out else "") + "\n" + caption(rigs)
