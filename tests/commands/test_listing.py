"""A folder of packages as text."""

import shutil

import pytest
from support.commands import lines_of

from stepcache.commands.listing import described
from stepcache.errors import StepCacheError


def test_what_is_there(packages, tmp_path):
    folder = shutil.copytree(packages, tmp_path / "packages")
    text = described(folder)
    assert f"{folder}: 2 packages, " in text and "Made with stepcache " in text and " for cpu " in text
    lines = [line for line in lines_of(text) if " graph " in line]
    assert sorted(line.split(" MB")[0].rpartition(" float32")[0] for line in lines) == [
        "full graph 2x4x16x16 UNet2DConditionModel,", "partial graph 2x4x16x16 UNet2DConditionModel,",
    ]  # fmt: skip
    assert all(line.endswith(" s sound") for line in lines)
    assert any("branch 0, guidance reused, blend of 2" in line for line in lines)
    (full,) = folder.glob("full*.pt2")
    full.write_bytes(b"")
    assert f"DAMAGED ({full} has 0 bytes" in described(folder)


def test_where_there_are_none(tmp_path):
    with pytest.raises(StepCacheError, match=r"No packages: .*manifest\.json cannot be read"):
        described(tmp_path)
