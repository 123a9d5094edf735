"""What is released: a wheel of the package and nothing else, an sdist of the repository, and a package that runs."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email import message_from_string

import pytest

from benchmarks import ROOT
from stepcache import __version__

pytest.importorskip("build", reason="needs build: pip install stepcache[test]")
pytestmark = pytest.mark.slow

# What a user does in the fresh environment. The demo's image is made in a folder that is no checkout.
USE = """
import stepcache
from pathlib import Path
from importlib.resources import files
from stepcache import accelerate, last_run
from stepcache.images.pipelines import load_demo
import stepcache.kernels.cat_group_norm_silu, stepcache.kernels.dual_conv1x1

assert Path(stepcache.__file__).is_relative_to({prefix!r}), stepcache.__file__
assert Path(stepcache.kernels.__file__).is_relative_to({prefix!r}), stepcache.kernels.__file__
for asset in ("py.typed", "assets/prompts/general.txt", "assets/report/report.html", "kernels/defaults.csv"):
    assert files("stepcache").joinpath(asset).read_text() is not None
pipe = accelerate(load_demo("cpu"), interval=2)
image = pipe("a red apple", num_inference_steps=4).images[0]
assert last_run(pipe).kinds == "FPFP" and image.size == (64, 64) and len(image.getcolors(4096)) > 100
"""


def run(*command, cwd):
    """What a command prints, run without what leads to this checkout."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True, cwd=cwd, env=env)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def tracked():
    """The repository's files, without those that begin with a dot."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        found = subprocess.run(listed, capture_output=True, text=True, check=True, cwd=ROOT).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a checkout")
    return {name for name in found if not name.startswith(".") and (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist, and the wheel made from it, with what was printed. A build litters its folder, so that is a copy."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for name in tracked():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tree / name)
    told = run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, tree, cwd=tree)
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, sdist, told


def test_builds_without_a_warning(built):
    wheel, sdist, told = built
    assert [
        line for line in told.splitlines() if re.search(r"\b(warning|deprecat\w+|error):?\s", line, re.IGNORECASE)
    ] == []
    assert (wheel.name, sdist.name) == (f"stepcache-{__version__}-py3-none-any.whl", f"stepcache-{__version__}.tar.gz")


def test_the_wheel_is_the_package(built):
    package = {"src/stepcache/": "stepcache/", "csrc_triton/": "stepcache/kernels/"}
    expected = {
        name.replace(folder, installed, 1)
        for name in tracked()
        for folder, installed in package.items()
        if name.startswith(folder)
    }
    with zipfile.ZipFile(built[0]) as wheel:
        names = {name for name in wheel.namelist() if not name.startswith(f"stepcache-{__version__}.dist-info/")}
    assert names == expected


def test_the_sdist_is_the_repository(built):
    with tarfile.open(built[1]) as sdist:
        names = {member.name.split("/", 1)[1] for member in sdist.getmembers() if member.isfile()}
    assert {name for name in names if not name.startswith("stepcache.egg-info/")} == tracked() | {
        "PKG-INFO",
        "setup.cfg",
    }


def test_metadata(built):
    with zipfile.ZipFile(built[0]) as wheel:
        text = wheel.read(f"stepcache-{__version__}.dist-info/METADATA").decode()
        licence = wheel.read(f"stepcache-{__version__}.dist-info/licenses/LICENSE").decode()
    metadata = message_from_string(text)
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload().strip() == (ROOT / "README.md").read_text().strip()
    assert metadata["License-Expression"] == "Apache-2.0" and licence == (ROOT / "LICENSE").read_text()
    assert metadata.get_all("Project-URL") == [
        "Paper, https://arxiv.org/abs/2312.00858",
        "PyPI, https://pypi.org/project/stepcache/",
    ]
    assert f"## {__version__} (" in (ROOT / "CHANGELOG.md").read_text()


def test_runs_where_it_is_installed_beside_torch(built, tmp_path):
    """In a fresh environment, which sees this one's torch and diffusers, and no checkout."""
    venv.create(tmp_path / "venv")
    programs = tmp_path / "venv" / "bin"
    (packages,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    # After the fresh one's own. The folder alone: .pth files in it, such as an editable install's, are not read.
    stock = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    (packages / "stock.pth").write_text("\n".join(stock) + "\n")
    pip = [sys.executable, "-m", "pip", "--python", programs / "python", "install", "--no-index"]
    run(*pip, "--no-deps", "--ignore-installed", built[0], cwd=tmp_path)
    # Nothing is missing, and nothing of the stock has to be another version.
    assert "Successfully installed" not in run(*pip, f"stepcache=={__version__}", cwd=tmp_path)
    run(programs / "python", "-c", USE.format(prefix=str(tmp_path / "venv")), cwd=tmp_path)
    assert run(programs / "stepcache", "--version", cwd=tmp_path).strip() == f"stepcache {__version__}"
    assert "sd15: UNet2DConditionModel, 860 M parameters" in run(
        programs / "stepcache", "inspect", "sd15", cwd=tmp_path
    )
