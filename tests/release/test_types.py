"""Users' type checkers see the types: stepcache in the site-packages of an environment, as mypy looks for it there."""

import re
import venv
from pathlib import Path

import pytest

import stepcache

api = pytest.importorskip("mypy.api")
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The Python of an environment with nothing but stepcache in it."""
    folder = tmp_path_factory.mktemp("user")
    venv.create(folder, symlinks=True)
    (packages,) = (folder / "lib").glob("python*/site-packages")
    (packages / "stepcache").symlink_to(Path(stepcache.__file__).parent)
    return folder / "bin" / "python"


def check(script, python):
    cache = python.parent / "mypy"
    return api.run(["--strict", "--config-file=", f"--python-executable={python}", f"--cache-dir={cache}", str(script)])


def test_a_strict_program_passes(installed):
    told, trouble, status = check(HERE / "typed_user.py", installed)
    assert (status, trouble) == (0, ""), told


def test_mistakes_are_found(installed):
    script = HERE / "typed_wrongly.py"
    told, _, status = check(script, installed)
    found = {int(line) for line in re.findall(r"^\S+:(\d+): error:", told, re.MULTILINE)}
    wrong = {number for number, line in enumerate(script.read_text().splitlines(), 1) if line.endswith("# wrong")}
    assert status == 1 and found == wrong, told
