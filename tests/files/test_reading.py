"""Text and JSON of which nothing is taken for granted."""

import json
import os
import random
from contextlib import suppress
from pathlib import Path

import pytest

from stepcache.errors import InvalidSetting
from stepcache.files import reading
from stepcache.files.reading import NotJson, infinity, parsed, path_of, read_text


@pytest.mark.parametrize(
    "value", [None, 3, True, b"x", "", "a\0b", "\ud800", "x" * 4097, [], object(), Path, float("nan")]
)
def test_what_is_no_path(value):
    with pytest.raises(InvalidSetting, match="plan must be a path"):
        path_of(value, "plan")


def test_paths(tmp_path):
    class Own:
        def __fspath__(self):
            return "a/b"

    class Bytes(Own):
        def __fspath__(self):
            return b"a"

    class Fails(Own):
        def __fspath__(self):
            raise RuntimeError

    for own in (Bytes(), Fails()):
        with pytest.raises(InvalidSetting, match=f"got a {type(own).__name__}"):
            path_of(own, "plan")
    assert path_of(os.fsdecode(b"caf\xe9"), "plan") == Path(os.fsdecode(b"caf\xe9"))  # a name that is not UTF-8
    assert path_of("a/b", "plan") == path_of(Own(), "plan") == Path("a/b") and path_of(tmp_path, "plan") == tmp_path


def test_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("caf\u00e9\r\n".encode())
    assert read_text(path) == "caf\u00e9\r\n"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "No such file or directory"),
        (Path.mkdir, "Is a directory"),
        (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
        (os.mkfifo, "it is no regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "it is no regular file"),
        (lambda path: path.touch() or os.truncate(path, reading.LARGEST + 1), "more than 64 MiB"),
    ],
)
def test_what_cannot_be_read(tmp_path, make, reason):
    path = tmp_path / "a.txt"
    make(path)
    with pytest.raises(InvalidSetting, match=f"a.txt cannot be read: .*{reason}"):
        read_text(path)


def test_latin_1_is_named_with_its_line(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("a cat\ntwo caf\u00e9s\n".encode("latin-1"))
    with pytest.raises(InvalidSetting, match=r"a.txt, line 2: not UTF-8 \(byte 0xe9\)"):
        read_text(path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        ("{} {}", "Extra data"),
        ("[NaN]", "NaN is not a number"),
        ("-Infinity", "-Infinity is not a number"),
        ("1e999", "1e999 is too large"),
        ("9" * 5000, "digits"),
        ('{"a": 1, "b": 2, "a": 1}', "the key 'a' is there twice"),
        ('["\\ud800"]', "half of a surrogate pair"),
        ('{"a": {"\\udfff": 1}}', "half of a surrogate pair"),
        ("[" * 102 + "]" * 102, "nested too deep"),
        ("[" * 10**6, "nested too deep"),
        ('{"a":' * 10**5 + "1" + "}" * 10**5, "nested too deep"),
    ],
)
def test_what_is_no_json(text, reason):
    with pytest.raises(NotJson, match=reason):
        parsed(text)


def test_files_that_have_numbers_that_json_lacks():
    assert parsed("[NaN, Infinity, -Infinity, 1]", constant=str) == ["NaN", "Infinity", "-Infinity", 1]


def test_json():
    value = {"a": [1, 2.5, True, None, "\U0001f600"], "b": {}}
    assert parsed(json.dumps(value)) == value
    assert parsed("[" * 100 + "]" * 100)


def test_infinite_numbers_for_who_asks():
    assert parsed("[Infinity, -Infinity]", constant=infinity) == [float("inf"), -float("inf")]
    with pytest.raises(NotJson, match="NaN is not a number"):
        parsed("NaN", constant=infinity)


def test_changed_json_raises_only_that():
    text, draw = json.dumps({"a": [1, 2.5, "x\u00e9"], "b": {"c": None}}), random.Random(0)
    for _ in range(2000):
        place = draw.randrange(len(text))
        with suppress(NotJson):
            parsed(text[:place] + chr(draw.randrange(1, 0x300)) + text[place + draw.randrange(3) :])
