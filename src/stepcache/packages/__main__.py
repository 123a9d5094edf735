"""Make one package: `python -m stepcache.packages JOB PACKAGE PARENT`, which build.py runs for each job."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import time
from pathlib import Path

from .job import make


def end_with(parent: int) -> None:
    """Kill this process and the compilers it started once the process `parent` has gone: nobody wants the package."""
    while os.getppid() == parent:
        time.sleep(1)
    os.killpg(0, signal.SIGKILL)  # a session of its own (build.py)


if __name__ == "__main__":
    threading.Thread(target=end_with, args=(int(sys.argv[3]),), daemon=True).start()
    with Path(sys.argv[1]).open("rb") as file:
        job = pickle.load(file)
    make(job, Path(sys.argv[2]))
