"""Reading the prompts of a batch, and the command line: what is wrong is said, with its place."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from batch import Batch, Task, batch_of, parser, read_tasks

from stepcache.errors import InvalidSetting
from stepcache.images import prompts


def test_tasks_have_their_place_as_id_and_a_seed_each(batch):
    tasks = read_tasks(batch)
    assert [(task.id, task.seed) for task in tasks] == [("000000", 7), ("000001", 101), ("000002", 7), ("000003", 103)]
    assert tasks[0] == Task("000000", "fox face", None, 7, 64, 32)
    assert tasks[1] == Task("000001", "hamburger", "", 101, None, None)
    assert read_tasks(replace(batch, size=48))[3] == Task("000003", "pineapple", None, 103, 48, 48)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.txt", "# of fruit\na red apple\r\n\n   \n  two pears, #1  \n"),
        ("p.txt", "\ufeffa caf\u00e9"),
        ("p.JSONL", '{"prompt": "x"}\n\n{"prompt": " a\u2028b ", "negative_prompt": " ", "seed": 7, "height": 64}'),
        ("p.txt", "# only a comment\n"),
        ("p.jsonl", "\n"),
        *(
            ("p.jsonl", f'{{"prompt": "fine"}}\n{line}')
            for line in (
                "a red apple", '["x"]', "3", '{"text": "x"}', '{"seed": 3}', '{"prompt": " "}', '{"prompt": 3}',
                '{"prompt": "x", "negative_prompt": null}', '{"prompt": "x", "seed": -1}',
                '{"prompt": "x", "seed": true}', '{"prompt": "x", "seed": 1.5}',
                '{"prompt": "x", "seed": 9223372036854775808}', '{"prompt": "x", "height": 100}',
                '{"prompt": "x", "width": 8}', "[]", "{}", '{"prompt": "x", "seed": NaN}', '{"\\ud800": 1}',
                '{"prompt": "x", "seed": -Infinity}', '{"prompt": "x", "height": 1e400}', '{"prompt": "x"} {}',
                '{"prompt": "x", "seed": ' + "7" * 10_000 + "}", '{"prompt": "x", "more": [{}]}',
                '{"prompt": {"a": "b"}}',
            )
        ),
    ],
)  # fmt: skip
def test_prompts_are_read_as_the_commands_read_them(name, text, batch, tmp_path):
    path = tmp_path / name
    path.write_bytes(text.encode())
    batch = replace(batch, prompts=path)
    try:
        wanted = prompts.read_prompts(path)
    except InvalidSetting as error:
        where, _, _ = str(error).partition(":")
        with pytest.raises(InvalidSetting, match=re.escape(where.partition(" has no")[0])):
            read_tasks(batch)
    else:
        found = [(task.prompt, task.negative, task.seed, task.height, task.width) for task in read_tasks(batch)]
        assert found == [
            (p.text, p.negative, 100 + i if p.seed is None else p.seed, p.height, p.width) for i, p in enumerate(wanted)
        ]


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("p.txt", b"a red apple\n\ncaf\xe9\n", "line 3: not UTF-8"),
        ("p.jsonl", b'{"prompt": "x"}\n{"prompt": "\xff"}', "line 2: not UTF-8"),
        ("p.txt", "a red apple".encode("utf-16"), "line 1: not UTF-8"),
        ("p.txt", b'a red apple\n{"prompt": "a pear", "seed": 3}', r"line 2: this is JSON\. Rename .+ p\.jsonl"),
        ("p.jsonl", b'{"prompt": "x", "seed": ' + b"7" * 10_000 + b"}", "line 1: not an object"),
        ("p.jsonl", b'{"prompt": "x", "prompt": "y"}', "line 1: not an object"),
        ("p.jsonl", b'{"prompt": ' + b"[" * 100_000, "line 1: not an object"),
        ("p.jsonl", b"[" * 100_000, "line 1: not an object"),
        ("p.jsonl", b'{"prompt": "x", "seed": ' + b'{"a":' * 100_000, "line 1: not an object"),
        ("p.jsonl", b'{"prompt": "\\ud800"}', "line 1: 'prompt' is unknown, invalid or missing"),
        (
            "p.jsonl",
            b'{"prompt": "x", "negative_prompt": "\\udfff y"}',
            "line 1: 'negative_prompt' is unknown, invalid",
        ),
        ("p.jsonl", b'{"prompt": "x", "\\ud800": 1}', r"line 1: '\\ud800' is unknown"),
        ("none.txt", None, "cannot be read: No such file or directory"),
        (".", None, "cannot be read: it is no regular file"),
        ("/dev/zero", None, "cannot be read: it is no regular file"),
    ],
)
def test_what_is_wrong_with_a_file_of_prompts(name, data, reason, batch, tmp_path):
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(InvalidSetting, match=f"{re.escape(str(path))}.*{reason}") as caught:
        read_tasks(replace(batch, prompts=path))
    assert str(caught.value).encode() and len(str(caught.value)) < 1000


def test_a_prompt_may_begin_like_json(batch, tmp_path):
    texts = ["{a | the} fox", "{", '{"prompt": "cut', "[3]", "7"]
    path = tmp_path / "p.txt"
    path.write_text("\n".join(texts))
    assert [task.prompt for task in read_tasks(replace(batch, prompts=path))] == texts


@pytest.mark.parametrize(
    "options",
    ["--steps 0", "--guidance nan", "--guidance inf", "--seed -1", "--size 100", "--batch-size 0", "--dtype half-way",
     "--dtype nn"],
)  # fmt: skip
def test_a_command_line_that_no_batch_can_have(options, tmp_path):
    line = ["p.txt", str(tmp_path / "out"), "--pipeline", "sd", *options.split()]
    with pytest.raises(InvalidSetting, match=rf"No batch can have {options}\. See --help"):
        batch_of(parser("").parse_args(line))
    assert not (tmp_path / "out").exists()


def test_command_line(tmp_path):
    line = ["p.txt", str(tmp_path / "a" / "b"), "--pipeline", "sd", "--steps", "20", "--batch-size", "4"]
    batch = batch_of(parser("").parse_args(line))
    assert batch == Batch(Path("p.txt"), tmp_path / "a" / "b", "sd", steps=20, batch_size=4) and batch.out.is_dir()
    assert batch_of(parser("").parse_args([*line, "--compile", "on"])).compile is True
    assert batch_of(parser("").parse_args([*line, "--compile", "off"])).compile is False
