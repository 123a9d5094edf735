"""`stepcache` commands in processes of their own, which get signals."""

import signal
import subprocess
import sys
import time
from pathlib import Path

COMMAND = [Path(sys.executable).with_name("stepcache")]

# A process whose subcommand `inspect` is a stand-in: the lines `work`, without torch. It says "ready" when they say so.
STAND_IN = """
import argparse, os, signal, sys, threading, time, types
command = types.ModuleType("stepcache.commands.inspect")
options = types.ModuleType("stepcache.commands.options.inspect")
options.add_arguments = lambda parser: None
def ready():
    os.write(1, b"ready\\n")
def run(args):
{work}
    return 0
command.run = run
sys.modules[command.__name__], sys.modules[options.__name__] = command, options
from stepcache.cli import main
{before}
sys.exit(main())
"""


class Process:
    """A command that runs. `ended` collects what it wrote, and its status."""

    def __init__(self, command, **options):
        piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.popen = subprocess.Popen([*map(str, command)], **{**piped, **options})
        self.send = self.popen.send_signal

    def ready(self):
        """Wait for a stand-in to say so."""
        assert self.popen.stdout.readline() == "ready\n", self.popen.communicate()
        return self

    def watching(self):
        """Wait until SIGTERM is handled: stepcache.cli was imported, and main was called."""
        deadline = time.monotonic() + 60
        status = Path(f"/proc/{self.popen.pid}/status")
        while time.monotonic() < deadline:
            (caught,) = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("SigCgt:")]
            if int(caught, 16) >> signal.SIGTERM - 1 & 1:
                return self
            time.sleep(0.005)
        raise AssertionError("it handles no signals")

    def ended(self):
        """(status, output, errors)."""
        try:
            output, errors = self.popen.communicate(timeout=100)
        finally:
            self.popen.kill()
        return self.popen.returncode, output, errors


def stand_in(work, before="", **options):
    """A process that runs the stand-in."""
    script = STAND_IN.format(work="".join(f"    {line}\n" for line in work.strip().splitlines()), before=before)
    return Process([sys.executable, "-c", script, "inspect"], **options)
