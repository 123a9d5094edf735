"""Packages for the tests: compiled once in a test run, for all its processes."""

from __future__ import annotations

import sys

from filelock import FileLock

from stepcache import accelerate, last_run, restore, save_compiled

from .small import ATTENDED, generate, loop_pipe, tiny_pipe

# Two joins with attention behind each; halves and a blend.
# Halves and a blend.
HOW = {"interval": 2, "predict": "linear", "guidance": "reuse"}


def pipe():
    """A pipeline with a U-Net of its own: two joins with attention behind each. All have the same weights."""
    return tiny_pipe(unet=ATTENDED)


def eager(made, **changes):
    """What `generate` returns for the pipe `made` accelerated and eager; it is restored afterwards."""
    accelerate(made, **{**HOW, **changes}, compile=False)
    found = generate(made)
    restore(made)
    return found


def make(folder):
    """Packages for `pipe()` with HOW in `folder`."""
    made = accelerate(pipe(), **HOW, compile=False)
    generate(made)
    save_compiled(made, folder, progress=False)
    assert last_run(made).compile_seconds == 0


def shared_folder(tmp_path_factory, name="packages", make=make):
    """The folder that `make` fills, the same one for all processes of a test run."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if base.name.startswith("popen-") else base
    with FileLock(base / f"{name}.lock"):
        if not (base / f"{name}.done").exists():
            make(base / name)
            (base / f"{name}.done").touch()
    return base / name


def loop_packages(folder, **settings):
    """Packages for `loop_pipe("least", **ATTENDED)` with those settings."""
    made = accelerate(loop_pipe("least", **ATTENDED), 2, compile=False, **settings)
    made(2)
    save_compiled(made, folder, progress=False)


def writes_package():
    """A command in place of the compiler's: the package is a text."""
    script = "import sys; open(sys.argv[2], 'w').write('a package')"
    return sys.executable, "-c", script
