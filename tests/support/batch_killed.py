"""Workers that SIGKILL themselves, and a log of what was made. Run as a script, or imported by one."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import batch
import folder as image_folder


def mortal(folder: Path, images: int) -> None:
    """Kill the first worker that reaches its image number `images`, when that is written but not in its place."""
    written = 0

    def fsync(file: int) -> None:
        nonlocal written
        written += 1
        if written == images:
            try:
                (folder / "died").touch(exist_ok=False)
            except FileExistsError:
                return
            os.kill(os.getpid(), signal.SIGKILL)

    image_folder.os = SimpleNamespace(**{**vars(os), "fsync": fsync})


def log_writes(folder: Path) -> None:
    """A line in folder/log for each image that was put in its place."""
    write = batch.write

    def logged(whole: batch.Batch, task: batch.Task, image: object) -> None:
        write(whole, task, image)
        with (folder / "log").open("a") as file:
            file.write(f"{task.id}\n")

    batch.write = logged


if __name__ == "__main__":
    import batch_torchrun

    mortal(Path(os.environ["FOLDER"]), images=2)
    log_writes(Path(os.environ["FOLDER"]))
    sys.exit(batch_torchrun.main())
