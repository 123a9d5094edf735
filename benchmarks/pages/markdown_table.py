"""A markdown table, and the caption that says where its figures come from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from stepcache.bench.rows import Rig

LISTED = 2  # commands of one script that a caption spells out


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A markdown table."""
    rule = ["---"] * len(header)
    rows = ([cell.replace("|", "\\|") for cell in cells] for cells in (header, rule, *lines))
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


def caption(rigs: Iterable[Rig], commands: bool = True) -> str:
    """Where the figures come from: a paragraph for each rig, day and commit, and the commands if they are wanted.

    Of many runs of one script, only the script is named: the CSV has the options of each row.
    """
    found: dict[str, dict[str, None]] = {}
    for rig in rigs:
        threads = f"{rig.threads} thread" + "s" * (rig.threads > 1)
        where = f"{rig.gpu or rig.cpu}, {threads}, torch {rig.torch}, diffusers {rig.diffusers}, {rig.date[:10]}"
        found.setdefault(f"{where}, commit {rig.commit}.", {})[f"`{rig.command}`"] = None
    return "\n".join(f"\n{where}" + f" {_shortened(list(run))}" * commands for where, run in found.items())


def _shortened(commands: list[str]) -> str:
    scripts = {_script(command.strip("`")) for command in commands}
    if len(commands) <= LISTED or len(scripts) > 1:
        return ", ".join(commands)
    return f"{len(commands)} runs of `{scripts.pop()}`, whose options are in the CSV's column `command`."


def _script(command: str) -> str:
    """The command without its options: "python -m benchmarks.one", "stepcache bench demo"."""
    words = command.split()
    options = (i for i, word in enumerate(words) if word.startswith("-") and word != "-m")
    return " ".join(words[: next(options, len(words))])
