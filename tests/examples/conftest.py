import sys

import pytest
from support.batch_checks import RECIPES, command_line, images, prompts_file, run_here

# Scripts that users copy, not a package: they import each other by file name.
sys.path.insert(0, str(RECIPES))


@pytest.fixture(scope="session")
def single(tmp_path_factory):
    """The images of a batch made in one process, by file name."""
    folder = tmp_path_factory.mktemp("single")
    run_here(*command_line(prompts_file(folder), folder / "out"))
    return images(folder / "out")
