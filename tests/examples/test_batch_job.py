"""What the engines share: tasks, what is missing of them, and images that are there whole or not at all."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from batch_job import (
    IN_A_ROW,
    Job,
    Task,
    batches,
    finish,
    job_of,
    make,
    missing,
    open_pipe,
    parser,
    read_tasks,
    work,
    write,
)
from batch_torchrun import check_store
from PIL import Image
from support.small import DEMO, demo_pipe

from stepcache import accelerate
from stepcache.errors import InvalidSetting

LINES = [
    {"prompt": "fox face", "seed": 7, "height": 64, "width": 32},
    {"prompt": "hamburger", "negative_prompt": ""},
    {"prompt": "tiger face", "seed": 7, "height": 64, "width": 32},
    {"prompt": "pineapple"},
]


@pytest.fixture
def job(tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(map(json.dumps, LINES)))
    (tmp_path / "out").mkdir()
    return Job(prompts, tmp_path / "out", "demo", steps=2, guidance=3.0, seed=100, dtype="float32")


def names(job):
    return sorted(path.name for path in job.out.iterdir())


def blank(pipe, job, batch):
    return [Image.new("RGB", (8, 8))] * len(batch)


def test_tasks_have_their_place_as_id_and_a_seed_each(job):
    tasks = read_tasks(job)
    assert [(task.id, task.seed) for task in tasks] == [("000000", 7), ("000001", 101), ("000002", 7), ("000003", 103)]
    assert tasks[0] == Task("000000", "fox face", None, 7, 64, 32)
    assert tasks[1] == Task("000001", "hamburger", "", 101, None, None)
    assert read_tasks(replace(job, size=48))[3] == Task("000003", "pineapple", None, 103, 48, 48)


def test_batches_have_tasks_that_one_call_can_take(job):
    assert [[task.id for task in batch] for batch in batches(read_tasks(job), 2)] == [
        ["000000", "000002"],  # of another size than the others
        ["000001"],  # an empty negative prompt is not the same as none
        ["000003"],
    ]
    assert [len(batch) for batch in batches([read_tasks(job)[0]] * 5, 2)] == [2, 2, 1]


def test_an_image_of_other_settings_is_not_taken_for_this_jobs(job):
    task = read_tasks(job)[0]
    write(job, task, Image.new("RGB", (8, 8)))
    assert [task.id for task in missing(job)] == ["000001", "000002", "000003"]
    with pytest.raises(InvalidSetting, match=r"000000.png is not of this job \(steps 2, now 4\). Take another --out"):
        missing(replace(job, steps=4))
    lines = job.prompts.read_text()
    job.prompts.write_text(lines.replace("fox face", "panda face"))
    with pytest.raises(InvalidSetting, match="prompt 'fox face', now 'panda face'"):
        missing(job)


@pytest.mark.parametrize("data", [b"", b"no image"])
def test_a_file_that_is_no_image_is_not_overwritten(job, data):
    (job.out / "000001.png").write_bytes(data)
    with pytest.raises(InvalidSetting, match=r"000001\.png is not of this job"):
        missing(job)


def test_another_image_is_not_overwritten(job):
    Image.new("RGB", (8, 8)).save(job.out / "000001.png")
    with pytest.raises(InvalidSetting, match=r"000001\.png is not of this job"):
        missing(job)


def test_a_write_that_fails_leaves_nothing(job, monkeypatch):
    def full(number):
        raise OSError("No space left on device")

    monkeypatch.setattr("batch_job.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write(job, read_tasks(job)[0], Image.new("RGB", (8, 8)))
    assert names(job) == []


def test_a_failing_batch_is_left_out_and_what_is_there_is_not_made(job, monkeypatch, capsys):
    made = []

    def make(pipe, job, batch):
        made.extend(task.id for task in batch)
        if batch[0].prompt == "hamburger":
            raise ValueError("no hamburgers")
        return blank(pipe, job, batch)

    monkeypatch.setattr("batch_job.make", make)
    tasks = read_tasks(job)
    write(job, tasks[2], Image.new("RGB", (8, 8)))
    assert work(None, job, tasks, "here") == [tasks[1]]
    assert made == ["000000", "000001", "000003"]
    assert "no hamburgers" in capsys.readouterr().err
    assert missing(job) == [tasks[1]] == finish(job)
    assert not job.manifest.exists()


def test_failures_in_a_row_end_the_worker(job, monkeypatch):
    calls = []

    def make(pipe, job, batch):
        calls.append(batch)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr("batch_job.make", make)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        work(None, job, read_tasks(job), "here")
    assert len(calls) == IN_A_ROW < len(read_tasks(job))


def test_the_end_of_a_job_is_a_manifest_and_no_leftovers(job, monkeypatch):
    monkeypatch.setattr("batch_job.make", blank)
    work(None, job, read_tasks(job), "here")
    (job.out / ".000002.png.elsewhere-17.part").write_bytes(b"half an ima")
    assert finish(job) == []
    assert names(job) == ["000000.png", "000001.png", "000002.png", "000003.png", "manifest.jsonl"]
    lines = [json.loads(line) for line in job.manifest.read_text().splitlines()]
    assert lines == [{"file": f"{task.id}.png", **job.record(task)} for task in read_tasks(job)]


def test_the_first_worker_saves_what_it_compiled_and_the_others_take_it(job, monkeypatch):
    """That the second one then compiles nothing is in test_batch_torchrun.py."""
    loaded, warm = [], []

    def accelerate_eager(pipe, *args, compiled, **options):
        loaded.append(compiled)
        return accelerate(pipe, *args, **options)

    def save(pipe, path):
        path.write_bytes(b"graphs")

    monkeypatch.setattr("batch_job.accelerate", accelerate_eager)
    monkeypatch.setattr("batch_job.save_compiled", save)
    monkeypatch.setattr("batch_job.warmup", lambda pipe, *size, progress: warm.append(size))
    job = replace(job, pipeline=DEMO, batch_size=3)
    tasks = read_tasks(job)
    open_pipe(job, "cpu", tasks, first=True)
    open_pipe(job, "cpu", tasks[:1])
    assert loaded == [None, job.out / "compiled.bin"]
    assert warm == [(64, 32, 3, True), (64, 64, 3, True), (64, 32, 3, True)]
    assert names(job) == ["compiled.bin"]


def test_an_image_does_not_depend_on_the_rest_of_its_batch(job):
    """Of the same batch size: a batch that is not full is filled up."""
    job = replace(job, batch_size=2)
    pipe = accelerate(demo_pipe(), job.interval, job.branch)
    first, second, third = (replace(task, negative=None, height=None, width=None) for task in read_tasks(job)[1:])
    pairs, alone = make(pipe, job, [first, second]), make(pipe, job, [second])
    assert len(pairs) == 2 and len(alone) == 1
    assert alone[0].tobytes() == pairs[1].tobytes() == make(pipe, job, [second, third])[0].tobytes()
    generator = torch.Generator().manual_seed(second.seed)
    (want,) = pipe(second.prompt, num_inference_steps=2, guidance_scale=3.0, generator=generator).images
    # Two prompts at once round otherwise than one.
    assert max(abs(a - b) for a, b in zip(alone[0].tobytes(), want.tobytes(), strict=True)) <= 2


def test_a_pipelines_other_arguments_are_the_tasks_own(job):
    calls = []

    class Pipe:
        def __call__(self, prompts, **call):
            calls.append((prompts, [g.initial_seed() for g in call.pop("generator")], call))
            return self

        images = ("an image",) * 2

    for batch in batches(read_tasks(job), 2):
        make(Pipe(), replace(job, batch_size=2), batch)
    common = {"num_inference_steps": 2, "guidance_scale": 3.0}
    assert calls == [
        (["fox face", "tiger face"], [7, 7], {"height": 64, "width": 32, **common}),
        (["hamburger"] * 2, [101] * 2, {"negative_prompt": ["", ""], **common}),
        (["pineapple"] * 2, [103] * 2, common),
    ]


def test_command_line(tmp_path):
    line = ["p.txt", str(tmp_path / "a" / "b"), "--pipeline", "sd", "--steps", "20", "--batch-size", "4"]
    job = job_of(parser("").parse_args(line))
    assert job == Job(Path("p.txt"), tmp_path / "a" / "b", "sd", steps=20, batch_size=4) and job.out.is_dir()
    assert job_of(parser("").parse_args([*line, "--compile", "on"])).compile is True
    assert job_of(parser("").parse_args([*line, "--compile", "off"])).compile is False


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
