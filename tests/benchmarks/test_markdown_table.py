"""Captions say where figures come from, in few words."""

from dataclasses import replace

import pytest

from benchmarks.pages.markdown_table import caption
from stepcache.bench.rows import Rig

RIG = Rig("AMD EPYC", "", 2, 1, "3.11", "2.13.0", "0.42.1", "3.9.0", "0.1.0", "abc", "", "2026-11-27T10:00:00")


def captioned(*commands):
    return caption(replace(RIG, command=command) for command in commands)


def test_two_commands_are_both_named():
    text = captioned("python -m benchmarks.one --a", "python -m benchmarks.one --b", "python -m benchmarks.one --a")
    assert text.endswith("commit abc. `python -m benchmarks.one --a`, `python -m benchmarks.one --b`")


@pytest.mark.parametrize("script", ["python -m benchmarks.one", "python benchmarks/one.py", "stepcache bench demo"])
def test_of_many_runs_of_a_script_only_the_script(script):
    text = captioned(*(f"{script} --n {n}" for n in range(3)))
    assert text.endswith(f"commit abc. 3 runs of `{script}`, whose options are in the CSV's column `command`.")


def test_many_scripts_are_all_named():
    text = captioned(*(f"python -m benchmarks.{name}" for name in ("one", "two", "three")))
    assert text.count("`python -m benchmarks.") == 3
