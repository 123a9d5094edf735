"""tests mirrors src/stepcache: each module has a test file of its name, or stands in the table here."""

from pathlib import Path

import pytest

import stepcache

TESTS, SOURCE = Path(__file__).parent, Path(stepcache.__file__).parent

# module -> the tests that cover it.
ELSEWHERE = {
    "errors": "test_public_api.py",  # raised in all rooms
    "bench/calls": "bench/test_bench_grid.py",
    "bench/cell": "bench/test_bench_grid.py",
    "bench/cell_rows": "bench/test_bench_grid.py",
    "bench/commit": "bench/test_bench_rows.py",
    "bench/entries": "commands/test_bench.py",
    "bench/heap": "bench/test_bench_grid.py",
    "bench/schema": "bench/test_bench_agreement.py",
    "bench/table": "benchmarks/test_tables.py",
    "calibration/laboratory": "calibration/test_calibration.py",
    "commands/arguments": "test_cli.py",
    "commands/quiet": "commands/test_compare.py",
    "comparison/runs": "commands/test_compare.py",
    "forwards/calls": "forwards/test_unet_2d_condition.py",
    "forwards/unet_3d_condition": "forwards/test_video.py",
    "forwards/unet_motion": "forwards/test_video.py",
    "forwards/unet_spatio_temporal_condition": "forwards/test_video.py",
    "images/pipelines": "commands/test_compare.py",
    "images/sheet": "commands/test_compare.py",
}

MODULES = sorted(
    path.relative_to(SOURCE).with_suffix("").as_posix()
    for path in SOURCE.rglob("*.py")
    if not path.stem.startswith("_") and path.relative_to(SOURCE).parts[0] not in ("graphs", "run")
)


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_tests(module):
    *room, name = module.split("/")
    # test_bench_grid.py: names of test files are unique, and benchmarks/ has some of the same.
    names = [f"test_{name}*.py", f"test_{'_'.join([*room, name])}*.py"]
    found = [path for pattern in names for path in TESTS.joinpath(*room).glob(pattern)]
    assert bool(found) != (module in ELSEWHERE), "not at all, or both in its place and in the table"


def test_the_table_is_true():
    assert set(ELSEWHERE) <= set(MODULES)
    assert all((TESTS / file).is_file() for file in ELSEWHERE.values())
