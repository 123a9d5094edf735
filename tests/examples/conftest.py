import json
import sys

import pytest
from support.batch_checks import LINES, RECIPES, SERVER, command_line, images, prompts_file, run_here
from support.packages import shared_folder
from support.small import ATTENDED, ONE_LEVEL, tiny_pipe

from stepcache import accelerate, save_compiled, warmup

# Scripts that users copy, not a package: they import each other by file name.
sys.path[:0] = [str(RECIPES), str(SERVER)]


@pytest.fixture(scope="session")
def single(tmp_path_factory):
    """The images of a batch made in one process, by file name."""
    folder = tmp_path_factory.mktemp("single")
    run_here(*command_line(prompts_file(folder), folder / "out"))
    return images(folder / "out")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The folder of the pipeline that compiles soonest."""
    folder = tmp_path_factory.mktemp("tiny") / "pipeline"
    tiny_pipe(unet=ONE_LEVEL).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def attended(tmp_path_factory):
    """The folder of a pipeline that is as small, and whose images depend on the prompt."""
    folder = tmp_path_factory.mktemp("attended") / "pipeline"
    tiny_pipe(unet=ATTENDED).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_packages(tmp_path_factory):
    """The folder of packages for it, at 64 x 64. Takes the C++ compiler most of a minute."""

    def make(folder):
        pipe = accelerate(tiny_pipe(unet=ONE_LEVEL), compile=False)
        warmup(pipe, 64, 64, progress=False)
        save_compiled(pipe, folder, progress=False)

    return shared_folder(tmp_path_factory, "tiny-packages", make)


@pytest.fixture
def batch(tmp_path):
    """A batch of four images of two sizes, of which none is there."""
    from batch import Batch
    from workers import leave

    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, LINES)))
    (tmp_path / "out").mkdir()
    yield Batch(path, tmp_path / "out", "demo", steps=2, guidance=3.0, seed=100, dtype="float32")
    leave(tmp_path / "out")
