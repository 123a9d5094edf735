"""What the batch recipes share: prompts, tasks, what is missing, and images that exist whole or not at all."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from batch import (
    IN_A_ROW,
    Batch,
    Task,
    batch_of,
    compile_ahead,
    finish,
    groups,
    join,
    load_pipe,
    make,
    missing,
    parser,
    read_tasks,
    start,
    work,
    write,
)
from batch_torchrun import check_store, main
from PIL import Image
from support.forks import ready
from support.small import DEMO, demo_pipe
from workers import leave

from stepcache import accelerate
from stepcache.errors import GraphCompileError, InvalidSetting
from stepcache.images import prompts

LINES = [
    {"prompt": "fox face", "seed": 7, "height": 64, "width": 32},
    {"prompt": "hamburger", "negative_prompt": ""},
    {"prompt": "tiger face", "seed": 7, "height": 64, "width": 32},
    {"prompt": "pineapple"},
]


@pytest.fixture
def batch(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, LINES)))
    (tmp_path / "out").mkdir()
    yield Batch(path, tmp_path / "out", "demo", steps=2, guidance=3.0, seed=100, dtype="float32")
    leave(tmp_path / "out")


def names(batch):
    return sorted(path.name for path in batch.out.iterdir())


def blank(pipe, batch, group):
    return [Image.new("RGB", (8, 8))] * len(group)


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


def test_groups_have_tasks_that_one_call_can_take(batch):
    assert [[task.id for task in group] for group in groups(read_tasks(batch), 2)] == [
        ["000000", "000002"],  # of another size than the others
        ["000001"],  # an empty negative prompt differs from none
        ["000003"],
    ]
    assert [len(group) for group in groups([read_tasks(batch)[0]] * 5, 2)] == [2, 2, 1]


def test_an_image_of_other_settings_is_not_taken(batch):
    task = read_tasks(batch)[0]
    write(batch, task, Image.new("RGB", (8, 8)))
    assert [task.id for task in missing(batch)] == ["000001", "000002", "000003"]
    with pytest.raises(InvalidSetting, match=r"000000.png is not of this batch \(steps 2, now 4\). Use another --out"):
        missing(replace(batch, steps=4))
    lines = batch.prompts.read_text()
    batch.prompts.write_text(lines.replace("fox face", "panda face"))
    with pytest.raises(InvalidSetting, match="prompt 'fox face', now 'panda face'"):
        missing(batch)


@pytest.mark.parametrize("data", [b"", b"no image", None])
def test_a_file_that_is_no_whole_image_is_made_again(batch, data, monkeypatch, capsys):
    """test_batch_folder.py has more ways to break one."""
    monkeypatch.setattr("batch.make", blank)
    tasks, path = read_tasks(batch), batch.out / "000001.png"
    work(None, batch, tasks, "here")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] if data is None else data)
    assert missing(batch) == [tasks[1]] == missing(batch, tasks[1:3])
    capsys.readouterr()
    work(None, batch, tasks, "here")
    again, line = capsys.readouterr().out.splitlines()
    assert again == f"{path} was empty, cut off or damaged: it is made again." and line.startswith("here: 000001 in ")
    assert path.read_bytes() == whole and missing(batch) == []


def test_another_image_is_not_overwritten(batch):
    Image.new("RGB", (8, 8)).save(batch.out / "000001.png")
    with pytest.raises(InvalidSetting, match=r"000001\.png is not of this batch"):
        missing(batch)


def test_a_write_that_fails_leaves_nothing(batch, monkeypatch):
    def full(number):
        raise OSError("No space left on device")

    monkeypatch.setattr("folder.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write(batch, read_tasks(batch)[0], Image.new("RGB", (8, 8)))
    assert names(batch) == []


def test_a_failing_group_is_left_out_and_what_is_there_is_not_made(batch, monkeypatch, capsys):
    made = []

    def make(pipe, batch, group):
        made.extend(task.id for task in group)
        if group[0].prompt == "hamburger":
            raise ValueError("no hamburgers")
        return blank(pipe, batch, group)

    monkeypatch.setattr("batch.make", make)
    tasks = read_tasks(batch)
    write(batch, tasks[2], Image.new("RGB", (8, 8)))
    assert work(None, batch, tasks, "here") == [tasks[1]]
    assert made == ["000000", "000001", "000003"]
    assert "no hamburgers" in capsys.readouterr().err
    assert missing(batch) == [tasks[1]] == finish(batch)
    assert not batch.manifest.exists()


def test_failures_in_a_row_end_the_worker(batch, monkeypatch):
    calls = []

    def make(pipe, batch, group):
        calls.append(group)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr("batch.make", make)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        work(None, batch, read_tasks(batch), "here")
    assert len(calls) == IN_A_ROW < len(read_tasks(batch))


def test_the_end_of_a_batch_is_a_manifest_and_no_leftovers(batch, monkeypatch):
    monkeypatch.setattr("batch.make", blank)
    join(batch)
    work(None, batch, read_tasks(batch), "here")
    (batch.out / ".000002.png.elsewhere-17.part").write_bytes(b"half an ima")
    assert finish(batch) == []
    own = [".job.lock", "job.json", "manifest.jsonl"]
    assert names(batch) == sorted(["000000.png", "000001.png", "000002.png", "000003.png", *own])
    lines = [json.loads(line) for line in batch.manifest.read_text().splitlines()]
    assert lines == [{"file": f"{task.id}.png", **batch.record(task)} for task in read_tasks(batch)]


def test_prompts_can_be_added_and_there_is_no_manifest_until_they_are_made(batch, monkeypatch):
    monkeypatch.setattr("batch.make", blank)
    join(batch)
    work(None, batch, read_tasks(batch), "here")
    assert finish(batch) == []
    with batch.prompts.open("a") as file:
        file.write('\n{"prompt": "mushroom"}\n{"prompt": "fox face"}')
    join(batch)
    todo = missing(batch)
    assert [task.id for task in todo] == ["000004", "000005"]
    work(None, batch, todo[:1], "here")
    assert not batch.manifest.exists() and finish(batch) == todo[1:]
    work(None, batch, todo, "here")
    assert finish(batch) == [] and len(batch.manifest.read_text().splitlines()) == 6


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({"steps": 4}, r"steps 2, now 4"),
        ({"guidance": 3.5, "branch": 1}, r"guidance 3\.0, now 3\.5; branch 0, now 1"),
        ({"seed": 1}, r"hash of the prompts '\w+', now '\w+'"),
        ({"prompts": ["a cat", "a dog"]}, r"images 4, now 2; hash of the prompts"),
    ],
)
def test_a_job_of_another_kind_waits(batch, changes, differs, tmp_path, monkeypatch):
    if prompts := changes.get("prompts"):
        changes = {"prompts": tmp_path / "others.txt"}
        changes["prompts"].write_text("\n".join(prompts))
    other = replace(batch, **changes)
    with ready(lambda: join(batch)):
        before = names(batch)
        with pytest.raises(InvalidSetting, match=rf"A job with other .+ is at work in .+out \({differs}.*\)\. Wait"):
            join(other)
        line = f"x {other.prompts} {batch.out} --pipeline demo --dtype float32".split()
        monkeypatch.setattr("sys.argv", line)
        with pytest.raises(InvalidSetting, match="Wait until it ends"):
            main()
        assert names(batch) == before
        join(batch)  # the same
    join(other)


@pytest.fixture
def calls(monkeypatch):
    """What the recipe compiles, accelerates with and warms up, in order; all of it runs eager."""
    found = []

    def accelerate_eager(pipe, *args, compile, cuda_graphs="auto", compiled=None, max_buckets):
        found.append(("accelerate", compile, cuda_graphs, compiled))
        return accelerate(pipe, *args, max_buckets=max_buckets)

    def save(pipe, path):
        found.append(("save", path))
        path.mkdir()

    monkeypatch.setattr("batch.accelerate", accelerate_eager)
    monkeypatch.setattr("batch.save_compiled", save)
    monkeypatch.setattr("batch.warmup", lambda pipe, *size, progress: found.append(("warm", *size)))
    return found


def test_one_worker_compiles_and_all_load(batch, calls):
    """test_batch_torchrun.py runs it."""
    batch = replace(batch, pipeline=DEMO, batch_size=3, compile=True)
    tasks, pipe = read_tasks(batch), load_pipe(batch, "cpu")
    compile_ahead(pipe, batch, tasks)
    warm = [("warm", 64, 32, 3, True), ("warm", 64, 64, 3, True)]
    assert calls == [("accelerate", False, False, None), *warm, ("save", batch.out / "compiled")]
    del calls[:]
    start(pipe, batch, tasks[:1])
    assert calls == [("accelerate", True, "auto", batch.out / "compiled"), warm[0]]
    assert names(batch) == ["compiled"]
    assert missing(batch, tasks) == tasks


@pytest.mark.parametrize("compile", ["auto", False])
def test_nothing_is_compiled_that_does_not_run(batch, calls, compile):
    """On a CPU, graphs are for those who ask for them; not even those that there are do run."""
    batch = replace(batch, pipeline=DEMO, compile=compile)
    batch.compiled.mkdir()
    tasks, pipe = read_tasks(batch), load_pipe(batch, "cpu")
    compile_ahead(pipe, batch, tasks)
    start(pipe, batch, tasks[:1])
    assert calls == [("accelerate", compile, "auto", None), ("warm", 64, 32, 1, True)]
    assert batch.has_graphs("cuda") == (compile == "auto")


def test_workers_go_on_where_nothing_can_be_compiled_ahead(batch, calls, monkeypatch, capsys):
    def save(pipe, path):
        raise GraphCompileError("no g++")

    monkeypatch.setattr("batch.save_compiled", save)
    batch = replace(batch, pipeline=DEMO, compile=True)
    tasks, pipe = read_tasks(batch), load_pipe(batch, "cpu")
    compile_ahead(pipe, batch, tasks)
    assert capsys.readouterr().out.endswith("workers compile the rest, each for itself. no g++\n")
    start(pipe, batch, tasks)
    assert calls[-3] == ("accelerate", True, "auto", None)


def test_an_image_does_not_depend_on_the_rest_of_its_group(batch):
    """With the same batch size: a group that is not full is filled up."""
    batch = replace(batch, batch_size=2)
    pipe = accelerate(demo_pipe(), batch.interval, batch.branch)
    first, second, third = (replace(task, negative=None, height=None, width=None) for task in read_tasks(batch)[1:])
    pairs, alone = make(pipe, batch, [first, second]), make(pipe, batch, [second])
    assert len(pairs) == 2 and len(alone) == 1
    assert alone[0].tobytes() == pairs[1].tobytes() == make(pipe, batch, [second, third])[0].tobytes()
    generator = torch.Generator().manual_seed(second.seed)
    (want,) = pipe(second.prompt, num_inference_steps=2, guidance_scale=3.0, generator=generator).images
    # Two prompts at once round differently from one.
    assert max(abs(a - b) for a, b in zip(alone[0].tobytes(), want.tobytes(), strict=True)) <= 2


def test_a_pipelines_other_arguments_are_the_tasks_own(batch):
    calls = []

    class Pipe:
        def __call__(self, prompts, **call):
            calls.append((prompts, [g.initial_seed() for g in call.pop("generator")], call))
            return self

        images = ("an image",) * 2

    for group in groups(read_tasks(batch), 2):
        make(Pipe(), replace(batch, batch_size=2), group)
    common = {"num_inference_steps": 2, "guidance_scale": 3.0}
    assert calls == [
        (["fox face", "tiger face"], [7, 7], {"height": 64, "width": 32, **common}),
        (["hamburger"] * 2, [101] * 2, {"negative_prompt": ["", ""], **common}),
        (["pineapple"] * 2, [103] * 2, common),
    ]


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


def test_restarts_that_would_fail_are_refused(monkeypatch):
    check_store()  # without torchrun
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "0")
    check_store()
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    with pytest.raises(InvalidSetting, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        check_store()
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    check_store()
