"""A markdown table, and the caption that says where its figures come from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from stepcache.bench.rows import Rig


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A markdown table."""
    rule = ["---"] * len(header)
    rows = ([cell.replace("|", "\\|") for cell in cells] for cells in (header, rule, *lines))
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


def caption(rigs: Iterable[Rig]) -> str:
    """Where the figures come from: a paragraph for each rig, day and commit, with the commands."""
    commands: dict[str, dict[str, None]] = {}
    for rig in rigs:
        threads = f"{rig.threads} thread" + "s" * (rig.threads > 1)
        where = f"{rig.gpu or rig.cpu}, {threads}, torch {rig.torch}, diffusers {rig.diffusers}, {rig.date[:10]}"
        commands.setdefault(f"{where}, commit {rig.commit}.", {})[f"`{rig.command}`"] = None
    return "\n".join(f"\n{where} {', '.join(run)}" for where, run in commands.items())
