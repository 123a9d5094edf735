"""What the batch recipes share: a file of prompts, a directory of images, one accelerated pipeline per worker.

A task is one image. Its id is its place in the file and it has its own seed, so the image does not depend on the worker
or on the other images of a call. The directory is the only state: an image appears in it whole (it is written under
another name and then renamed), is named by its id, and carries what it was made from as PNG text. So a worker that was
killed, or a batch that is started again, makes exactly what is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from stepcache import accelerate, save_compiled, warmup
from stepcache.errors import GraphCompileError, InvalidSetting, NothingCompiled

TEXT = "stepcache"  # the PNG text chunk with the record of what an image was made from

# So many failures in a row are not the prompts' fault: out of memory, a lost CUDA context, a full disk.
IN_A_ROW = 3

# Keys of a JSONL line, and what a valid value is.
KEYS = {
    "prompt": lambda value: isinstance(value, str) and value.strip(),
    "negative_prompt": lambda value: isinstance(value, str),
    "seed": lambda value: type(value) is int and 0 <= value < 2**63,
    "height": lambda value: type(value) is int and value >= 16 and value % 8 == 0,
    "width": lambda value: type(value) is int and value >= 16 and value % 8 == 0,
}


@dataclass(frozen=True)
class Batch:
    """What to make of which prompts, and where: the same for all workers, and picklable.

    size: pixels of a side for prompts without a size; None is the pipeline's own. batch_size: prompts per call.
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
    def compiled(self) -> Path:
        """The folder of graphs that one worker compiles and all load."""
        return self.out / "compiled"

    @property
    def manifest(self) -> Path:
        """JSONL with a line for each image. It exists once no image is missing."""
        return self.out / "manifest.jsonl"

    def path(self, task: Task) -> Path:
        """The file of a task's image."""
        return self.out / f"{task.id}.png"

    def has_graphs(self, device: torch.device | str) -> bool:
        """Whether workers on this device run compiled graphs."""
        return torch.device(device).type == "cuda" if self.compile == "auto" else bool(self.compile)

    def record(self, task: Task) -> dict[str, Any]:
        """Everything that decides what the image looks like."""
        settings = {k: getattr(self, k) for k in ("pipeline", "steps", "guidance", "interval", "branch", "dtype")}
        return {**asdict(task), **settings}


@dataclass(frozen=True)
class Task:
    """One image. negative: None without a negative prompt. height, width: in pixels; None for the pipeline's own."""

    id: str
    prompt: str
    negative: str | None
    seed: int
    height: int | None
    width: int | None


def read_tasks(batch: Batch) -> list[Task]:
    """The tasks of the prompts file, in its order. A prompt without a seed gets the batch's seed plus its place."""
    tasks = []
    for place, entry in enumerate(read_prompts(batch.prompts)):
        negative = entry.get("negative_prompt")
        tasks.append(
            Task(
                f"{place:06d}",
                entry["prompt"].strip(),
                None if negative is None else negative.strip(),
                entry.get("seed", batch.seed + place),
                entry.get("height", batch.size),
                entry.get("width", batch.size),
            )
        )
    return tasks


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """An entry for each line of the file: JSONL with KEYS if its name ends in .jsonl, else text with a prompt a line.

    Blank lines are skipped, in text also those that start with #. InvalidSetting for anything else.
    """
    is_json = path.suffix.lower() == ".jsonl"
    entries = []
    # Not splitlines(): it splits at characters that JSON allows inside a string.
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        line = line.strip()
        if not line or (not is_json and line.startswith("#")):
            continue
        try:
            entry = json.loads(line) if is_json else {"prompt": line}
            wrong = [key for key, value in entry.items() if key not in KEYS or not KEYS[key](value)]
        except (ValueError, AttributeError) as error:
            raise InvalidSetting(
                f'{path}, line {number}: not an object such as {{"prompt": "a red apple"}}.'
            ) from error
        if wrong or "prompt" not in entry:
            raise InvalidSetting(
                f"{path}, line {number}: {', '.join(wrong) or 'prompt'} is unknown, invalid or missing. It takes a "
                "prompt and optionally a negative_prompt, a seed, and a height and width in multiples of 8 pixels."
            )
        entries.append(entry)
    if not entries:
        raise InvalidSetting(f"{path} has no prompts.")
    return entries


def missing(batch: Batch, tasks: Sequence[Task] | None = None) -> list[Task]:
    """The tasks (default: all) whose image does not exist.

    InvalidSetting for an image of that name that was made from something else: use another directory.
    """
    todo = []
    for task in read_tasks(batch) if tasks is None else tasks:
        path, wanted = batch.path(task), batch.record(task)
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
                f"{path} is not of this batch ({'; '.join(differs[:3])}). Use another --out, or move it away."
            )
    return todo


def load_pipe(batch: Batch, device: torch.device | str) -> Any:
    """A worker's pipeline, not accelerated yet."""
    import diffusers

    dtype = getattr(torch, batch.dtype)
    pipe = diffusers.DiffusionPipeline.from_pretrained(batch.pipeline, torch_dtype=dtype, local_files_only=True)
    pipe.to(device).set_progress_bar_config(disable=True)
    return pipe


def compile_ahead(pipe: Any, batch: Batch, tasks: Sequence[Task]) -> None:
    """Compile the graphs for the sizes of `tasks` that `batch.compiled` lacks.

    One worker calls it, before all of them `start`. It may be killed: what it had finished is not compiled again. If
    nothing is lacking, it costs two eager steps of each size.
    """
    if not batch.has_graphs(pipe.device):
        return
    warm_up(pipe, batch, tasks, compile=False, cuda_graphs=False)  # eager: it only shows which graphs there are
    try:
        save_compiled(pipe, batch.compiled)
    except (NothingCompiled, GraphCompileError) as error:
        print(f"Not everything is compiled ahead; workers compile the rest, each for itself. {error}", flush=True)


def start(pipe: Any, batch: Batch, tasks: Sequence[Task]) -> None:
    """Accelerate a worker's pipeline and warm it up for the sizes of `tasks`, with the graphs in `batch.compiled`."""
    ahead = batch.has_graphs(pipe.device) and batch.compiled.exists()
    warm_up(pipe, batch, tasks, compile=batch.compile, compiled=batch.compiled if ahead else None)


def warm_up(pipe: Any, batch: Batch, tasks: Sequence[Task], **graphs: Any) -> None:
    """Accelerate the pipe, with the arguments `graphs`, and run two steps of each size of `tasks`."""
    own = pipe.unet.config.sample_size * pipe.vae_scale_factor
    sizes = sorted({(task.height or own, task.width or own) for task in tasks})
    accelerate(pipe, batch.interval, batch.branch, max_buckets=max(4, len(sizes)), **graphs)
    for height, width in sizes:
        warmup(pipe, height, width, batch.batch_size, batch.guidance > 1, progress=False)


def work(pipe: Any, batch: Batch, tasks: Sequence[Task], worker: str) -> list[Task]:
    """Make the missing images of `tasks`; returns the tasks that failed, whose errors are printed.

    After an error the next group is tried, but IN_A_ROW errors are raised: go on in a new process.
    """
    failed: list[Task] = []
    in_a_row = 0
    for group in groups(tasks, batch.batch_size):
        # Check again: an engine that retries hands out tasks of which some are done.
        if not (group := missing(batch, group)):
            continue
        start = time.perf_counter()
        try:
            for task, image in zip(group, make(pipe, batch, group), strict=True):
                write(batch, task, image)
        except Exception:
            traceback.print_exc()
            failed += group
            in_a_row += 1
            if in_a_row == IN_A_ROW:
                raise
        else:
            in_a_row = 0
            ids = ", ".join(task.id for task in group)
            print(f"{worker}: {ids} in {time.perf_counter() - start:.1f} s", flush=True)
    return failed


def groups(tasks: Sequence[Task], size: int) -> Iterator[list[Task]]:
    """`tasks` in groups of at most `size` that one call of a pipeline can take."""
    alike: dict[object, list[Task]] = {}
    for task in tasks:
        alike.setdefault((task.height, task.width, task.negative is None), []).append(task)
    for group in alike.values():
        yield from (group[i : i + size] for i in range(0, len(group), size))


def make(pipe: Any, batch: Batch, group: list[Task]) -> list[Image.Image]:
    """The images of a group.

    A short group is filled up with its last task: another number of prompts would need another pair of graphs, and
    other kernels, which round differently.
    """
    full = group + group[-1:] * (batch.batch_size - len(group))
    optional = {
        "negative_prompt": None if full[0].negative is None else [task.negative for task in full],
        "height": full[0].height,
        "width": full[0].width,
    }
    images = pipe(
        [task.prompt for task in full],
        # On the CPU: the same random numbers with any GPU.
        generator=[torch.Generator().manual_seed(task.seed) for task in full],
        num_inference_steps=batch.steps,
        guidance_scale=batch.guidance,
        **{name: value for name, value in optional.items() if value is not None},
    ).images
    return images[: len(group)]


def write(batch: Batch, task: Task, image: Image.Image) -> None:
    """Put the image in its place, whole or not at all, even if this process is killed."""
    info = PngInfo()
    info.add_text(TEXT, json.dumps(batch.record(task)))
    with replacing(batch.path(task)) as file:
        image.save(file, format="PNG", pnginfo=info)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which replaces `path` once everything is written."""
    # The name is this process's own: a worker that was given up for dead may still be writing.
    part = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # the contents before the name, in case power fails
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def finish(batch: Batch) -> list[Task]:
    """What is still missing. If nothing is, write the manifest and remove what killed workers left.

    Every worker may call it when its own part is done: the last one finds nothing missing.
    """
    tasks = read_tasks(batch)
    if todo := missing(batch, tasks):
        return todo
    for part in batch.out.glob(".*.png.*.part"):
        part.unlink(missing_ok=True)
    with replacing(batch.manifest) as file:
        for task in tasks:
            file.write(json.dumps({"file": batch.path(task).name, **batch.record(task)}).encode() + b"\n")
    return []


def parser(description: str | None) -> argparse.ArgumentParser:
    """The command line of a batch; an engine may add its own options."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", type=Path, help="text with a prompt a line, or .jsonl")
    parser.add_argument("out", type=Path, help="directory for the images, on a file system that all workers see")
    parser.add_argument("--pipeline", required=True, help="directory of a diffusers pipeline")
    for name in ("steps", "guidance", "interval", "branch", "seed", "batch_size", "dtype"):
        default = getattr(Batch, name)
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=type(default), default=default, help=f"default: {default}"
        )
    parser.add_argument("--size", type=int, help="pixels of a side (default: the pipeline's own)")
    parser.add_argument("--compile", choices=("auto", "on", "off"), default="auto", help="default: auto, on CUDA only")
    return parser


def batch_of(args: argparse.Namespace) -> Batch:
    """The batch of a parsed command line. Creates its directory."""
    values = {name: value for name, value in vars(args).items() if name in Batch.__dataclass_fields__}
    values["compile"] = {"auto": "auto", "on": True, "off": False}[args.compile]
    batch = Batch(**values)
    batch.out.mkdir(parents=True, exist_ok=True)
    return batch
