"""What the batch recipes share: a file of prompts, a directory of images, one accelerated pipeline per worker.

A task is one image. Its id is its place in the file and it has its own seed, so the image does not depend on the worker
or on the other images of a call. The directory is the only state: an image appears in it whole (folder.py), is named by
its id, and carries what it was made from as PNG text. So a worker that was killed, or a batch that is started again,
makes exactly what is missing. One job at a time works in a directory (workers.py).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import workers
from folder import is_done, put, replacing
from PIL import Image

from stepcache import accelerate, save_compiled, warmup
from stepcache.errors import GraphCompileError, InvalidSetting, NothingCompiled

# So many failures in a row are not the prompts' fault: out of memory, a lost CUDA context, a full disk.
IN_A_ROW = 3

# Keys of a JSONL line, and what a valid value is.
KEYS = {
    "prompt": lambda value: is_text(value) and value.strip(),
    "negative_prompt": lambda value: is_text(value),
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

    @property
    def settings(self) -> dict[str, Any]:
        """What decides, besides its task, what an image looks like."""
        return {key: getattr(self, key) for key in ("pipeline", "steps", "guidance", "interval", "branch", "dtype")}

    def record(self, task: Task) -> dict[str, Any]:
        """Everything that decides what the image looks like."""
        return {**asdict(task), **self.settings}


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
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        line, where = line.strip(), f"{path}, line {number}"
        if not line or (not is_json and line.startswith("#")):
            continue
        entry = parse_json(line) if is_json or line.startswith("{") else None
        if is_json and entry is None:
            raise InvalidSetting(f'{where}: not an object such as {{"prompt": "a red apple"}}.')
        if not is_json and entry is not None:
            raise InvalidSetting(f"{where}: this is JSON. Rename the file to {path.stem}.jsonl, for it to be read so.")
        entry = entry if is_json else {"prompt": line}
        wrong = [f"{key!r:.80}" for key, value in entry.items() if key not in KEYS or not KEYS[key](value)]
        if wrong or "prompt" not in entry:
            raise InvalidSetting(
                f"{where}: {', '.join(wrong[:3]) or 'prompt'} is unknown, invalid or missing. It takes a prompt and "
                "optionally a negative_prompt, a seed, and a height and width in multiples of 8 pixels."
            )
        entries.append(entry)
    if not entries:
        raise InvalidSetting(f"{path} has no prompts.")
    return entries


def read_text(path: Path) -> str:
    """The text of a file. InvalidSetting, with the reason, if it cannot be read or is not UTF-8."""
    try:
        if path.exists() and not path.is_file():
            raise InvalidSetting(f"{path} cannot be read: it is no regular file.")
        data = path.read_bytes()
    except OSError as error:
        raise InvalidSetting(f"{path} cannot be read: {error.strerror}.") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InvalidSetting(f"{path}, line {line}: not UTF-8. Save the file as UTF-8.") from error


def parse_json(line: str) -> dict[str, Any] | None:
    """The object in a line of JSON. None for all else, and for an object with a key twice."""
    try:
        pairs = json.loads(line, object_pairs_hook=tuple)
    except (ValueError, RecursionError):  # RecursionError: nested by the thousand
        return None
    return dict(pairs) if isinstance(pairs, tuple) and len(dict(pairs)) == len(pairs) else None


def is_text(value: object) -> bool:
    """Whether it is a string that a file can hold: JSON may have half of a surrogate pair."""
    return isinstance(value, str) and value == value.encode(errors="replace").decode()


def join(batch: Batch) -> None:
    """Make this process a worker of the batch, until it ends. Each worker calls it first.

    InvalidSetting, with what differs, while workers with other prompts or settings are at work in the directory.
    """
    tasks = [asdict(task) for task in read_tasks(batch)]
    tasks_hash = hashlib.sha256(json.dumps(tasks).encode()).hexdigest()[:16]
    workers.join(batch.out, {**batch.settings, "images": len(tasks), "hash of the prompts": tasks_hash})


def missing(batch: Batch, tasks: Sequence[Task] | None = None) -> list[Task]:
    """The tasks (default: all) whose image does not exist, or is empty, cut off or damaged. Reads all that do.

    InvalidSetting for an image of that name that was made from something else: use another directory.
    """
    tasks = read_tasks(batch) if tasks is None else tasks
    return [task for task in tasks if not is_done(batch.path(task), batch.record(task))]


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
            batch.manifest.unlink(missing_ok=True)  # of a time when nothing was missing
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
    """Put the image in its place, whole or not at all, even if this process is killed. It overwrites no other."""
    put(batch.path(task), batch.record(task), image)


def finish(batch: Batch) -> list[Task]:
    """What is still missing. If nothing is, write the manifest.

    Every worker may call it when its own part is done: the last one finds nothing missing. It also removes what killed
    workers left; if others are still alive, the next start does.
    """
    workers.clean(batch.out)
    tasks = read_tasks(batch)
    if todo := missing(batch, tasks):
        return todo
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
    """The batch of a parsed command line. Creates its directory. InvalidSetting for values that no batch can have."""
    values = {name: value for name, value in vars(args).items() if name in Batch.__dataclass_fields__}
    values["compile"] = {"auto": "auto", "on": True, "off": False}[args.compile]
    batch = Batch(**values)
    valid = {
        "steps": batch.steps >= 1,
        "guidance": math.isfinite(batch.guidance),
        "seed": KEYS["seed"](batch.seed),
        "size": batch.size is None or KEYS["height"](batch.size),
        "batch_size": batch.batch_size >= 1,
        "dtype": isinstance(getattr(torch, batch.dtype, None), torch.dtype),
    }
    if wrong := [f"--{name.replace('_', '-')} {getattr(batch, name)}" for name, fine in valid.items() if not fine]:
        raise InvalidSetting(f"No batch can have {', '.join(wrong)}. See --help.")
    batch.out.mkdir(parents=True, exist_ok=True)
    return batch
