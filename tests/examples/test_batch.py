"""The images of a batch: what is missing, made together, done, left over, and whose turn it is in a directory."""

import json
from dataclasses import replace

import pytest
import torch
from batch import IN_A_ROW, finish, groups, join, make, missing, read_tasks, work, write
from batch_torchrun import main
from PIL import Image
from support.batch_checks import names
from support.forks import ready
from support.small import demo_pipe

from stepcache import accelerate
from stepcache.errors import InvalidSetting


def blank(pipe, batch, group):
    return [Image.new("RGB", (8, 8))] * len(group)


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
