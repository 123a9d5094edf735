"""tests mirrors src/stepcache: each module has a test file of its name, or stands in the table here."""

from pathlib import Path

import pytest

import stepcache

TESTS, SOURCE = Path(__file__).parent, Path(stepcache.__file__).parent

# Modules that the tests of others cover, by the file of these.
ELSEWHERE = {
    "bench/test_bench_grid.py": "bench/calls bench/cell bench/cell_rows bench/commit bench/heap",
    "bench/test_bench_agreement.py": "bench/schema",
    "benchmarks/test_tables.py": "bench/table",
    "commands/test_bench.py": "bench/entries",
    "commands/test_compare.py": "commands/loading comparison/results images/pipelines",
    "forwards/test_unet_2d_condition.py": "forwards/freeu",
    "forwards/test_video.py": "forwards/unet_3d_condition forwards/unet_motion forwards/unet_spatio_temporal_condition",
    "graphs/test_capture.py": "forwards/autocast forwards/nested graphs/engine",
    "graphs/test_compiled.py": "graphs/options graphs/regional graphs/settings graphs/unet",
    "graphs/test_freshness.py": "graphs/snapshot",
    "graphs/test_hazards.py": "graphs/backends graphs/replays graphs/turns",
    "graphs/test_standin.py": "graphs/hosttensor graphs/standin_memory",
    "files/test_lines.py": "files/locks",
    "graphs/test_tuning.py": "forwards/join_shape",
    "graphs/test_verdicts.py": "graphs/verdict_file",
    "pipes/test_unet.py": "pipes/seat",
    "plans/test_plans_reading.py": "plans/weights",
    "run/test_decoder.py": "graphs/decoder",
    "run/test_session.py": "run/record run/steps",
    "run/test_warmup.py": "graphs/progress",
    "test_cli.py": (
        "commands/notes commands/options/bench commands/options/calibrate commands/options/compare "
        "commands/options/compile commands/options/demo commands/options/inspect commands/options/tune"
    ),
    "test_public_api.py": "errors",
}
COVERED = [module for modules in ELSEWHERE.values() for module in modules.split()]

MODULES = sorted(
    path.relative_to(SOURCE).with_suffix("").as_posix()
    for path in SOURCE.rglob("*.py")
    if not path.stem.startswith("_")
)


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_tests(module):
    *room, name = module.split("/")
    # test_bench_grid.py: names of test files are unique, and benchmarks/ has some of the same.
    names = [f"test_{name}*.py", f"test_{'_'.join([*room, name])}*.py"]
    found = [path for pattern in names for path in TESTS.joinpath(*room).glob(pattern)]
    assert bool(found) != (module in COVERED), "neither in its place nor in the table, or in both"


def test_the_table_is_true():
    assert len(COVERED) == len(set(COVERED)) and set(COVERED) <= set(MODULES)
    assert all((TESTS / file).is_file() for file in ELSEWHERE)


def test_names_of_test_files_are_unique():
    """pytest imports them by name alone: of two, it runs the first and reports an error for the other."""
    names = [path.name for path in TESTS.rglob("test_*.py")]
    assert sorted(name for name in set(names) if names.count(name) > 1) == []
