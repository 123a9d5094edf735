"""`stepcache` commands run in this process."""

import contextlib
import io
import socket

import pytest

from stepcache import cli


def run_command(*arguments):
    """(status, output, errors) of `stepcache` with these arguments, which must not ask for the network."""
    output, errors = io.StringIO(), io.StringIO()

    def refuse(*args):
        raise AssertionError("the command asked for the network")

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        patch.setattr(socket.socket, "connect", refuse)
        status = cli.main([*map(str, arguments)])
    return status, output.getvalue(), errors.getvalue()


def lines_of(output):
    """The lines of a table, their columns separated by single blanks."""
    return [" ".join(line.split()) for line in output.splitlines()]
