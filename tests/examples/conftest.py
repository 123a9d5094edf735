import sys

import pytest
from support.batch_checks import JOBS, images, job, prompts_file, run

# Scripts that users copy, not a package: they import each other by file name.
sys.path.insert(0, str(JOBS))


@pytest.fixture(scope="session")
def single(tmp_path_factory):
    """The images of a job in one process, by file name."""
    folder = tmp_path_factory.mktemp("single")
    run([JOBS / "batch_torchrun.py", *job(prompts_file(folder), folder / "out")])
    return images(folder / "out")
