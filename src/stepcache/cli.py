"""The `stepcache` command: its subcommands, and how their errors reach the terminal.

A subcommand is a file in `commands/` with `add_arguments(parser)` and `run(args) -> exit status`, and a line in
COMMANDS. Only the file of the subcommand that runs is imported.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from ._version import __version__
from .commands.signals import Ending
from .errors import StepCacheError

# Name -> one line for `stepcache --help`. The file is commands/<name>.py.
COMMANDS = {
    "bench": "eager, torch.compile, DeepCache and stepcache side by side: seconds, memory and fidelity as a CSV",
    "calibrate": "find the plan with the best images at a given cost, for one pipeline, scheduler and step count",
    "compare": "original against accelerated on your prompts: an HTML page of images, figures and drift",
    "compile": "compile graphs ahead of time, so that the next process loads them instead of compiling",
    "demo": "generate images without and with stepcache, and show the difference in a picture and a table",
    "inspect": "what each branch of a U-Net runs, caches and costs; or what is in a folder of packages",
    "tune": "measure on this GPU which joins are faster with the Triton kernels, and keep the verdicts",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `stepcache` with these arguments; returns the exit status.

    0: done. 2: failed, with the reason in one line on stderr. 130, 143, 129: ended by SIGINT (Ctrl-C), SIGTERM or
    SIGHUP, with one line on stderr and with what was done kept. argparse itself raises SystemExit(2) for arguments that
    do not parse, and SystemExit(0) for --help and --version.

    Without `argv`, the arguments are sys.argv's, and the process is the command's: its signals are handled here until
    it ends (commands/signals.py), and a second one ends it at once. With `argv`, signals stay the caller's.
    """
    ending = Ending()
    if argv is None:
        ending.watch()
    arguments = list(sys.argv[1:] if argv is None else argv)
    asked = arguments[0] if arguments and arguments[0] in COMMANDS else None
    args = _parser(asked).parse_args(arguments)
    command = import_module(f".commands.{args.command}", __package__)
    try:
        ending.working = True
        status: int = command.run(args)
        sys.stdout.flush()
        ending.working = False
    except BaseException as error:
        ending.working = False
        # Some libraries turn a KeyboardInterrupt into an error of their own.
        if isinstance(error, KeyboardInterrupt) or ending.came:
            return _stopped(ending, error)
        return _failed(error)
    return status if ending.came is None else _stopped(ending)


def _stopped(ending: Ending, error: BaseException | None = None) -> int:
    """Say what ended the command; commands that raise KeyboardInterrupt with a text say what they have kept."""
    try:
        sys.stdout.flush()
    except OSError:  # the terminal was closed, or the reader of a pipe interrupted too
        _forget_stdout()
    return ending.say(str(error) if isinstance(error, KeyboardInterrupt) else "")


def _failed(error: BaseException) -> int:
    """Say why the command failed. Errors that are bugs are raised again, with their traceback."""
    if isinstance(error, BrokenPipeError):  # `stepcache ... | head` closed the pipe
        _forget_stdout()
        return 0
    if isinstance(error, StepCacheError):
        return _fail(str(error))
    if isinstance(error, OSError):
        # A file could not be read or written: give its name and the system's reason.
        named = error.filename is not None and error.strerror is not None
        return _fail(f"{error.filename}: {error.strerror}" if named else str(error))
    raise error


def _forget_stdout() -> None:
    """Let go of what could not be written. Without this Python would complain again at shutdown."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser(asked: str | None) -> argparse.ArgumentParser:
    """The parser of all commands, with the arguments of the one asked for."""
    parser = argparse.ArgumentParser(
        prog="stepcache",
        description="Makes U-Net diffusion pipelines fast by reusing their deep features between denoising steps.",
        epilog="`stepcache COMMAND --help` explains a command's options. "
        "Exit status: 0 done, 2 failed, 130 interrupted (Ctrl-C), 143 terminated, 129 hung up.",
    )
    parser.add_argument("--version", action="version", version=f"stepcache {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        if name == asked:
            import_module(f".commands.{name}", __package__).add_arguments(command)
    return parser


def _fail(message: str) -> int:
    sys.stderr.write(f"stepcache: {message}\n")
    return 2
