"""Make one package: `python -m stepcache.packages JOB PACKAGE`. build.py starts it, with a job that it pickled."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

from .job import make

if __name__ == "__main__":
    with Path(sys.argv[1]).open("rb") as file:
        job = pickle.load(file)
    make(job, Path(sys.argv[2]))
