import argparse

import pytest

from stepcache.commands.arguments import (
    add_predict,
    add_reuse,
    check_writable,
    distinct,
    image_size,
    integers,
    pixels_of,
    sizes,
)
from stepcache.errors import InvalidSetting


def test_asking_whether_a_file_can_be_written_changes_nothing(tmp_path):
    kept = tmp_path / "kept.png"
    kept.write_bytes(b"mine")
    check_writable(kept)
    check_writable(tmp_path / "new.png")
    assert kept.read_bytes() == b"mine"
    assert [path.name for path in tmp_path.iterdir()] == ["kept.png"]


def test_integers_and_repetitions():
    parser = argparse.ArgumentParser()
    add_reuse(parser, "")
    args = parser.parse_args(["--interval", "5,2", "--interval", "2", "--branch", "3"])
    assert distinct(args.interval, (9,)) == [5, 2]
    assert distinct(args.branch, (9,)) == [3]
    assert distinct(parser.parse_args([]).interval, (2, 3)) == [2, 3]
    assert integers("7") == [7]


def test_predict_is_as_accelerate_takes_it():
    parser = argparse.ArgumentParser()
    add_predict(parser)
    assert parser.parse_args([]).predict == "hold"
    for text, value in {"linear": "linear", "auto": "auto", "0.5": 0.5, "1,-0.25": (1.0, -0.25), "x,1": "x,1"}.items():
        found = parser.parse_args(["--predict", text]).predict
        assert found == value and type(found) is type(value)
    assert parser.parse_args(["--predict=-0.5,1"]).predict == (-0.5, 1.0)


def test_sizes_are_height_by_width():
    assert sizes("512,768x1024") == [(512, 512), (768, 1024)]
    assert pixels_of("768X512") == image_size("768x512") == (768, 512)
    assert image_size("64") == (64, 64) and image_size(None) is None
    with pytest.raises(InvalidSetting, match="--size must be a multiple of 8 pixels and at least 16, got 12"):
        image_size("64x12")


@pytest.mark.parametrize("text", ["9" * 5000, "512x" + "9" * 5000, "1234567", "0x", "", "-8", "64x64x64"])
def test_what_is_no_size(text):
    with pytest.raises(argparse.ArgumentTypeError, match="must be sizes"):
        sizes(text)
    with pytest.raises(InvalidSetting, match="--size must be pixels"):
        pixels_of(text)


def test_a_link_is_followed_and_a_folder_is_none(tmp_path):
    link = tmp_path / "link.png"
    link.symlink_to(tmp_path / "there.png")
    check_writable(link)
    assert link.is_symlink() and not link.exists()
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(IsADirectoryError):
        check_writable(tmp_path / "folder.png")
