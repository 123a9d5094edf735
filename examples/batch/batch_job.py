"""A batch job: a file of prompts, a directory of images, one accelerated pipeline a worker. What both engines share.

A task is one image. Its id is its place in the file and its seed is its own, so the image depends neither on the worker
that makes it nor on what else is in the batch. The directory is the job's only state: an image appears in it whole (it
is written beside and renamed), is named by its id and carries what it was made from as PNG text. So what is missing can
be read off the directory, and a worker that was killed, or a job that is started again, makes that and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from stepcache import accelerate, save_compiled, warmup
from stepcache.errors import InvalidSetting, NothingCompiled
from stepcache.images.prompts import read_prompts  # text with a prompt a line, or JSONL with seeds and sizes

TEXT = "stepcache"  # the PNG text chunk with the record of what an image was made from

# So many failures in a row are not the prompts' fault: out of memory, a GPU whose context is lost, a full disk.
IN_A_ROW = 3


@dataclass(frozen=True)
class Job:
    """What is to be made of which prompts, and where: the same for all workers, and picklable.

    size: pixels of a side where the prompt says none; None is the pipeline's own. batch_size: prompts of one call.
    """

    prompts: Path
    out: Path
    pipeline: str
    steps: int = 50
    guidance: float = 7.5
    interval: int = 3
    branch: int = 0
    seed: int = 0
    size: int | None = None
    batch_size: int = 1
    dtype: str = "float16"
    compile: bool | str = "auto"

    @property
    def artifacts(self) -> Path:
        """What the first worker compiled, for the others."""
        return self.out / "compiled.bin"

    @property
    def manifest(self) -> Path:
        """JSONL with a line an image; it is there once none is missing."""
        return self.out / "manifest.jsonl"

    def path(self, task: Task) -> Path:
        """Where that image belongs."""
        return self.out / f"{task.id}.png"

    def record(self, task: Task) -> dict[str, Any]:
        """All that decides what the image looks like."""
        settings = {k: getattr(self, k) for k in ("pipeline", "steps", "guidance", "interval", "branch", "dtype")}
        return {**asdict(task), **settings}


@dataclass(frozen=True)
class Task:
    """One image. height, width in pixels; None for the pipeline's own size, or no negative prompt."""

    id: str
    prompt: str
    negative: str | None
    seed: int
    height: int | None
    width: int | None


def read_tasks(job: Job) -> list[Task]:
    """The tasks of the prompts' file, in its order. A prompt without a seed gets the job's seed plus its place."""
    return [
        Task(
            f"{i:06d}",
            p.text,
            p.negative,
            job.seed + i if p.seed is None else p.seed,
            p.height or job.size,
            p.width or job.size,
        )
        for i, p in enumerate(read_prompts(job.prompts))
    ]


def missing(job: Job, tasks: Sequence[Task] | None = None) -> list[Task]:
    """Those of `tasks` (default: all) whose image is not there.

    InvalidSetting for an image of that name which was made from something else: its place is another directory.
    """
    todo = []
    for task in read_tasks(job) if tasks is None else tasks:
        path, wanted = job.path(task), job.record(task)
        try:
            with Image.open(path) as image:
                found = json.loads(image.info.get(TEXT, "{}"))
        except FileNotFoundError:
            todo.append(task)
            continue
        except OSError:
            found = {}
        if found != wanted:
            differs = [
                f"{key} {found.get(key)!r}, now {wanted[key]!r}" for key in wanted if found.get(key) != wanted[key]
            ]
            raise InvalidSetting(
                f"{path} is not of this job ({'; '.join(differs[:3])}). Take another --out, or move it away."
            )
    return todo


def open_pipe(job: Job, device: torch.device | str, tasks: Sequence[Task], *, first: bool = False) -> Any:
    """The worker's pipeline, accelerated and warmed up for the sizes of `tasks`.

    What another worker compiled is taken from `job.artifacts` if that is there; the `first` worker writes it.
    """
    import diffusers

    dtype = getattr(torch, job.dtype)
    pipe = diffusers.DiffusionPipeline.from_pretrained(job.pipeline, torch_dtype=dtype, local_files_only=True)
    pipe.to(device).set_progress_bar_config(disable=True)
    own = pipe.unet.config.sample_size * pipe.vae_scale_factor
    sizes = sorted({(task.height or own, task.width or own) for task in tasks})
    compiled = job.artifacts if job.artifacts.exists() else None
    accelerate(pipe, job.interval, job.branch, compile=job.compile, compiled=compiled, max_buckets=max(4, len(sizes)))
    for height, width in sizes:
        warmup(pipe, height, width, job.batch_size, job.guidance > 1, progress=False)
    if first:
        with suppress(NothingCompiled):  # eager, as on a CPU by default
            save_compiled(pipe, job.artifacts)
    return pipe


def work(pipe: Any, job: Job, tasks: Sequence[Task], worker: str) -> list[Task]:
    """Make those of `tasks` whose images are missing; gives those that failed, whose errors are printed.

    An error in a batch does not keep the next from its turn, but IN_A_ROW of them are raised: go on in a new process.
    """
    failed: list[Task] = []
    in_a_row = 0
    for batch in batches(tasks, job.batch_size):
        # Looked at again: an engine that retries hands out tasks of which some are done.
        if not (batch := missing(job, batch)):
            continue
        start = time.perf_counter()
        try:
            for task, image in zip(batch, make(pipe, job, batch), strict=True):
                write(job, task, image)
        except Exception:
            traceback.print_exc()
            failed += batch
            in_a_row += 1
            if in_a_row == IN_A_ROW:
                raise
        else:
            in_a_row = 0
            ids = ", ".join(task.id for task in batch)
            print(f"{worker}: {ids} in {time.perf_counter() - start:.1f} s", flush=True)
    return failed


def batches(tasks: Sequence[Task], size: int) -> Iterator[list[Task]]:
    """`tasks` in batches of at most `size` that one call of a pipeline can take."""
    alike: dict[object, list[Task]] = {}
    for task in tasks:
        alike.setdefault((task.height, task.width, task.negative is None), []).append(task)
    for group in alike.values():
        yield from (group[i : i + size] for i in range(0, len(group), size))


def make(pipe: Any, job: Job, batch: list[Task]) -> list[Image.Image]:
    """The images of a batch.

    A short batch is filled up with its last task: each other number of prompts would be another pair of graphs, and
    other kernels with other roundings.
    """
    full = batch + batch[-1:] * (job.batch_size - len(batch))
    optional = {
        "negative_prompt": None if full[0].negative is None else [task.negative for task in full],
        "height": full[0].height,
        "width": full[0].width,
    }
    images = pipe(
        [task.prompt for task in full],
        # On the CPU: the same random numbers whatever the GPU.
        generator=[torch.Generator().manual_seed(task.seed) for task in full],
        num_inference_steps=job.steps,
        guidance_scale=job.guidance,
        **{name: value for name, value in optional.items() if value is not None},
    ).images
    return images[: len(batch)]


def write(job: Job, task: Task, image: Image.Image) -> None:
    """Put the image in its place, whole or not at all, whenever this process is stopped."""
    info = PngInfo()
    info.add_text(TEXT, json.dumps(job.record(task)))
    with replacing(job.path(task)) as file:
        image.save(file, format="PNG", pnginfo=info)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write in, which takes the place of `path` when all has been written."""
    # A name of this process's own: a worker that was given up for dead may still be writing.
    part = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # the bytes before the name, where power fails too
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def finish(job: Job) -> list[Task]:
    """What is still missing; if nothing is, the manifest is written and what killed workers left is cleared away.

    Any worker may call it when its own part is done: the last one finds nothing missing.
    """
    tasks = read_tasks(job)
    if todo := missing(job, tasks):
        return todo
    for part in job.out.glob(".*.png.*.part"):
        part.unlink(missing_ok=True)
    with replacing(job.manifest) as file:
        for task in tasks:
            file.write(json.dumps({"file": job.path(task).name, **job.record(task)}).encode() + b"\n")
    return []


def parser(description: str | None) -> argparse.ArgumentParser:
    """The command line of a job; an engine adds its own."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", type=Path, help="text with a prompt a line, or .jsonl")
    parser.add_argument("out", type=Path, help="directory for the images, on a file system that all workers see")
    parser.add_argument("--pipeline", required=True, help="directory of a diffusers pipeline")
    for name in ("steps", "guidance", "interval", "branch", "seed", "batch_size", "dtype"):
        default = getattr(Job, name)
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=type(default), default=default, help=f"default: {default}"
        )
    parser.add_argument("--size", type=int, help="pixels of a side (default: the pipeline's own)")
    parser.add_argument("--compile", choices=("auto", "on", "off"), default="auto", help="default: auto, on CUDA only")
    return parser


def job_of(args: argparse.Namespace) -> Job:
    """The job of a parsed command line; its directory is made."""
    values = {name: value for name, value in vars(args).items() if name in Job.__dataclass_fields__}
    values["compile"] = {"auto": "auto", "on": True, "off": False}[args.compile]
    job = Job(**values)
    job.out.mkdir(parents=True, exist_ok=True)
    return job
