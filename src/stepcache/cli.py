"""The `stepcache` command: its subcommands, and how their errors reach the terminal.

A subcommand is a line in COMMANDS and two files of its name: `commands/options/NAME.py` with `add_arguments(parser)`,
which imports no torch, and `commands/NAME.py` with `run(args) -> exit status`. Only those of the subcommand that runs
are imported, and for its `--help` only the first.

Exit status:
0 done. A reader that goes away (`stepcache ... | head`) changes no status: the work goes on without it.
1 a bug: Python's, with a traceback.
2 invalid arguments, or a failure; the reason is on stderr. `bench` and `compare` end so, too,
  when nothing could be measured, after they have written and printed the reasons.
130, 143, 129 ended by SIGINT (Ctrl-C), SIGTERM or SIGHUP; one line on stderr, and finished work is kept.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module

from ._version import __version__
from .bench.command import running
from .commands.notes import notes
from .commands.signals import Ending
from .commands.streams import outlast_readers
from .errors import StepCacheError

DESCRIPTION = "Makes U-Net diffusion pipelines fast by reusing their deep features between denoising steps."

# Task -> name -> one line for `stepcache --help`.
COMMANDS = {
    "Try it": {
        "demo": "generate images without and with stepcache, and show the difference in a picture and a table",
        "inspect": "what each branch of a U-Net runs, caches and costs; or what is in a folder of packages",
    },
    "Choose settings": {
        "compare": "original against accelerated on your prompts: an HTML page of images, figures and drift",
        "calibrate": "find the plan with the best images at a given cost, for one pipeline, scheduler and step count",
        "bench": "eager, torch.compile, DeepCache and stepcache side by side: seconds, memory and fidelity as a CSV",
    },
    "Deploy": {
        "compile": "compile graphs ahead of time, so that the next process loads them instead of compiling",
        "tune": "measure on this GPU which joins are faster with the Triton kernels, and keep the verdicts",
    },
}
SUMMARIES = {name: summary for commands in COMMANDS.values() for name, summary in commands.items()}

STATUSES = {
    "0": "done",
    "1": "a bug, with a traceback",
    "2": "failed, or nothing could be measured; the reason is on stderr",
    "130, 143, 129": "ended by Ctrl-C, SIGTERM or SIGHUP; finished work is kept",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `stepcache` with these arguments; returns the exit status.

    argparse itself raises SystemExit(2) for arguments that do not parse, and SystemExit(0) for --help and --version.

    Without `argv`, the arguments are sys.argv's, and the process is the command's: until it ends, its signals are
    handled here (commands/signals.py), of which a second one ends it at once, and its output outlasts its readers
    (commands/streams.py). With `argv`, signals and streams stay the caller's.
    """
    ending = Ending()
    if argv is None:
        ending.watch()
        outlast_readers()
    arguments = list(sys.argv[1:] if argv is None else argv)
    asked = arguments[0] if arguments and arguments[0] in SUMMARIES else None
    args = _parser(asked).parse_args(arguments)
    command = import_module(f".commands.{args.command}", __package__)
    try:
        ending.working = True
        with notes(), running(arguments):
            status: int = command.run(args)
        _flush()
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
    with suppress(OSError):  # a full disk, or a caller's stream: what ended the command is the news
        _flush()
    return ending.say(str(error) if isinstance(error, KeyboardInterrupt) else "")


def _failed(error: BaseException) -> int:
    """Say why the command failed. Errors that are bugs are raised again, with their traceback."""
    if isinstance(error, StepCacheError):
        return _fail(str(error))
    if isinstance(error, OSError):
        # A file could not be read or written: give its name and the system's reason.
        named = error.filename is not None and error.strerror is not None
        return _fail(f"{error.filename}: {error.strerror}" if named else str(error))
    raise error


def _flush() -> None:
    if sys.stdout is not None:  # it was closed from the start
        sys.stdout.flush()


def _parser(asked: str | None) -> argparse.ArgumentParser:
    """The parser of all commands, with the arguments of the one asked for."""
    parser = argparse.ArgumentParser(
        prog="stepcache",
        usage="stepcache [-h] [--version] COMMAND ...",
        description="\n\n".join([textwrap.fill(DESCRIPTION, _width()), *map(_table, COMMANDS, COMMANDS.values())]),
        epilog=f"{_table('exit status', STATUSES)}\n\n`stepcache COMMAND --help` explains a command's options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"stepcache {__version__}")
    # Their list is in the description: argparse has one list of them, without groups.
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, prog="stepcache", help=argparse.SUPPRESS
    )
    for name, summary in SUMMARIES.items():
        # In full only: `--variant` of one command is not to be `--variants` of another.
        description = f"{summary[0].upper()}{summary[1:]}."
        command = commands.add_parser(name, help=summary, description=description, allow_abbrev=False)
        if name == asked:
            import_module(f".commands.options.{name}", __package__).add_arguments(command)
    return parser


def _table(title: str, lines: Mapping[str, str]) -> str:
    """As argparse shows a group of options, in the width of the terminal."""
    column = max(11, *(len(name) + 2 for name in lines))
    wrapped = [
        textwrap.fill(text, _width(), initial_indent=f"  {name:<{column}}", subsequent_indent=" " * (column + 2))
        for name, text in lines.items()
    ]
    return "\n".join([f"{title}:", *wrapped])


def _width() -> int:
    """That of argparse's own texts, with room for a word on the narrowest terminal."""
    return max(shutil.get_terminal_size().columns - 2, 24)


def _fail(message: str) -> int:
    if sys.stderr is not None:
        sys.stderr.write(f"stepcache: {message}\n")
    return 2
