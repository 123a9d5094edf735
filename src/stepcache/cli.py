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
    """Run `stepcache` with these arguments (default: sys.argv's); returns the exit status.

    0: done. 2: failed, with the reason in one line on stderr. 130: interrupted. argparse itself raises SystemExit(2)
    for arguments that do not parse, and SystemExit(0) for --help and --version.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    asked = arguments[0] if arguments and arguments[0] in COMMANDS else None
    args = _parser(asked).parse_args(arguments)
    try:
        status: int = import_module(f".commands.{args.command}", __package__).run(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # `stepcache ... | head` closed the pipe. Without this Python would complain again at shutdown.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return _fail("interrupted", status=130)
    except StepCacheError as error:
        return _fail(str(error))
    except OSError as error:
        # A file could not be read or written: give its name and the system's reason.
        named = error.filename is not None and error.strerror is not None
        return _fail(f"{error.filename}: {error.strerror}" if named else str(error))


def _parser(asked: str | None) -> argparse.ArgumentParser:
    """The parser of all commands, with the arguments of the one asked for."""
    parser = argparse.ArgumentParser(
        prog="stepcache",
        description="Makes U-Net diffusion pipelines fast by reusing their deep features between denoising steps.",
        epilog="`stepcache COMMAND --help` explains a command's options.",
    )
    parser.add_argument("--version", action="version", version=f"stepcache {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        if name == asked:
            import_module(f".commands.{name}", __package__).add_arguments(command)
    return parser


def _fail(message: str, status: int = 2) -> int:
    sys.stderr.write(f"stepcache: {message}\n")
    return status
