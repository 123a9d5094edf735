"""Processes that get signals while they import, work, end, and shut down. Commands that do real work: `-m slow`."""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import time
from pathlib import Path

import pytest
from support.signalled import COMMAND, Process, stand_in
from support.terminals import read_terminal

from stepcache import cli
from stepcache.commands import inspect, signals
from stepcache.commands.signals import Ending

ALL = [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated"), (signal.SIGHUP, 129, "hung up")]
pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")


@pytest.mark.parametrize(
    ("seconds", "number", "status", "word"),
    [(0, *ALL[0]), (0.4, *ALL[1]), (0.8, *ALL[0]), (1.2, *ALL[2])],
)
def test_while_torch_is_imported(seconds, number, status, word):
    process = Process([*COMMAND, "inspect", "sd15"]).watching()
    time.sleep(seconds)
    process.send(number)
    assert process.ended() == (status, "", f"stepcache: {word}\n")


UNTIL_ENDED = "ready(); sys.stdin.readline()"  # `ended` closes stdin, after the signal was sent
WORKING = "try:\n    ready(); time.sleep(60)\nexcept KeyboardInterrupt:\n    {then}"


@pytest.mark.parametrize(("number", "status", "word"), ALL)
def test_at_work_it_is_a_keyboard_interrupt(number, status, word):
    process = stand_in(WORKING.format(then="print('kept'); raise")).ready()
    process.send(number)
    assert process.ended() == (status, "kept\n", f"stepcache: {word}\n")


@pytest.mark.parametrize(
    ("then", "detail"),
    [
        ("raise KeyboardInterrupt('2 rows are kept')", "; 2 rows are kept"),
        ("raise ValueError('a library made this of it')", ""),
        ("from stepcache.errors import StepCacheError; raise StepCacheError('and this')", ""),
        ("raise OSError(5, 'the terminal is gone')", ""),
        ("return 0", ""),
        ("os._exit = None; sys.exit(7)", ""),
    ],
)
def test_whatever_becomes_of_the_exception(then, detail):
    process = stand_in(WORKING.format(then=then)).ready()
    process.send(signal.SIGTERM)
    assert process.ended() == (143, "", f"stepcache: terminated{detail}\n")


@pytest.mark.parametrize(("second", "_", "__"), ALL)
def test_a_second_one_ends_it_at_once(second, _, __):
    process = stand_in(WORKING.format(then="ready(); time.sleep(60)")).ready()
    process.send(signal.SIGTERM)
    process.ready().send(second)
    assert process.ended() == (143, "", "stepcache: terminated\n")


@pytest.mark.parametrize("milliseconds", [0, 1, 2, 5, 10, 20, 50])
def test_two_of_them_soon_after_each_other(milliseconds):
    process = stand_in(WORKING.format(then="raise")).ready()
    process.send(signal.SIGINT)
    time.sleep(milliseconds / 1000)
    process.send(signal.SIGINT)
    status, _, errors = process.ended()
    # -2: Python has taken its handlers off, in the last moments of the process. A shell gives it 130 too.
    assert status in (130, -signal.SIGINT) and errors == "stepcache: interrupted\n"


def path(folder):
    return f"sys.path.insert(0, {str(folder)!r})"


def test_an_import_at_work_is_let_end(tmp_path):
    (tmp_path / "slowly.py").write_text("import os, time\nos.write(1, b'ready\\n')\ntime.sleep(0.3)\nwhole = True")
    work = (
        "try:\n    import slowly\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    import slowly\n    print('whole', slowly.whole)\n    raise"
    )
    process = stand_in(work, path(tmp_path)).ready()
    process.send(signal.SIGTERM)
    assert process.ended() == (143, "whole True\n", "stepcache: terminated\n")


def test_an_import_that_takes_long_is_not_waited_for(tmp_path):
    (tmp_path / "slowly.py").write_text("import os, time\nos.write(1, b'ready\\n')\ntime.sleep(60)")
    process = stand_in("import slowly", path(tmp_path)).ready()
    process.send(signal.SIGTERM)
    start = time.monotonic()
    assert process.ended() == (143, "", "stepcache: terminated\n")
    assert signals.PATIENCE / 2 < time.monotonic() - start < 20
    process = stand_in("import slowly", path(tmp_path)).ready()
    process.send(signal.SIGTERM)
    time.sleep(0.1)
    process.send(signal.SIGTERM)
    assert process.ended() == (143, "", "stepcache: terminated\n")


@pytest.mark.parametrize(("work", "first"), [("pass", False), ("ready(); time.sleep(60)", True)])
def test_while_the_process_shuts_down(work, first):
    process = stand_in(work, "import atexit; atexit.register(lambda: (ready(), time.sleep(60)))").ready()
    if first:
        process.send(signal.SIGINT)
        process.ready()
    process.send(signal.SIGINT)
    assert process.ended() == (130, "", "stepcache: interrupted\n")


@pytest.mark.parametrize(("number", "status", "word"), ALL)
def test_what_the_parent_ignores_stays_ignored(number, status, word):
    def ignore():
        signal.signal(number, signal.SIG_IGN)

    process = stand_in(f"{UNTIL_ENDED}; print('done')", preexec_fn=ignore, stdin=subprocess.PIPE).ready()
    process.send(number)
    assert process.ended() == (0, "done\n", "")


def test_a_handler_of_somebody_else_stays():
    own = "signal.signal(signal.SIGTERM, lambda *_: print('theirs', flush=True))"
    process = stand_in(UNTIL_ENDED, own, stdin=subprocess.PIPE).ready()
    process.send(signal.SIGTERM)
    assert process.ended() == (0, "theirs\n", "")


def test_outside_the_main_thread_nothing_is_taken_over():
    work = "print(signal.getsignal(signal.SIGINT) is signal.default_int_handler, flush=True)"
    elsewhere = "thread = threading.Thread(target=main)\nthread.start()\nthread.join()\nsys.exit()"
    assert stand_in(work, elsewhere).ended() == (0, "True\n", "")


def test_a_worker_that_was_forked_says_nothing():
    work = (
        "begun, begin = os.pipe()\n"
        "child = os.fork()\n"
        "if child == 0:\n    os.write(begin, b'x')\n    time.sleep(60)\n"
        "os.read(begun, 1)\n"
        "os.kill(child, signal.SIGTERM)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    assert stand_in(work).ended() == (0, f"{-signal.SIGTERM}\n", "")


def test_a_closed_stderr():
    for then in ("raise", "ready(); time.sleep(60)"):
        process = stand_in(WORKING.format(then=then), stderr=None, preexec_fn=lambda: os.close(2)).ready()
        process.send(signal.SIGTERM)
        if then != "raise":
            process.ready().send(signal.SIGTERM)
        assert process.ended()[0] == 143


def test_a_terminal_that_is_closed():
    """Its process gets SIGHUP, and can write nowhere."""
    main, side = pty.openpty()
    process = stand_in(WORKING.format(then="time.sleep(0.2); print('kept'); raise"), stdout=side, stderr=side)
    os.close(side)
    assert os.read(main, 5) == b"ready"
    process.send(signal.SIGHUP)
    os.close(main)
    assert process.popen.wait(timeout=60) == 129


def test_on_a_terminal_the_line_is_its_own():
    main, side = pty.openpty()
    process = stand_in(WORKING.format(then="os.write(2, b'50 %|###'); time.sleep(60)"), stderr=side).ready()
    os.close(side)
    process.send(signal.SIGINT)
    seen = b""
    while b"###" not in seen:
        seen += os.read(main, 100)
    process.send(signal.SIGINT)
    assert process.popen.wait(timeout=60) == 130
    assert os.read(main, 100).replace(b"\r\n", b"\n") == b"\nstepcache: interrupted\n"
    os.close(main)
    process.popen.stdout.close()


PROGRESS = "from stepcache.progress import progress\nwith progress('working', 4, 'runs') as bar:\n"
PROGRESS += "    bar.update()\n    ready()\n    time.sleep(60)"


def test_a_progress_bar_s_line_ends_before_the_last_one():
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = stand_in(PROGRESS, stderr=side).ready()
    os.close(side)
    process.send(signal.SIGINT)
    assert process.popen.wait(timeout=60) == 130
    text = read_terminal(main)
    process.popen.stdout.close()
    assert re.fullmatch(r"(\r +\d+%\|.{10}\| [01]/4 runs \[.{,12}\] working)+\nstepcache: interrupted\n", text)


def test_the_last_line_of_progress_in_a_pipe_is_whole():
    process = stand_in(PROGRESS).ready()
    process.send(signal.SIGINT)
    status, _, errors = process.ended()
    assert status == 130 and re.fullmatch(
        r"  0% 0/4 runs \[00:00<\?\] working\n( 25% 1/4 runs \[.*\] working\n){1,2}stepcache: interrupted\n", errors
    )


def test_with_arguments_the_signals_are_the_callers(monkeypatch, capsys):
    seen = []

    def run(args):
        seen.append([signal.getsignal(number) for number, *_ in ALL])
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)

    monkeypatch.setattr(inspect, "run", run)
    before = [signal.getsignal(number) for number, *_ in ALL]
    assert cli.main(["inspect", "sd15"]) == 130
    assert capsys.readouterr().err == "stepcache: interrupted\n"
    assert seen == [before] and [signal.getsignal(number) for number, *_ in ALL] == before


def test_an_ending_without_a_signal_is_an_interrupt(capsys):
    ending = Ending()
    assert (ending.came, ending.status, ending.say("why")) == (None, 130, 130)
    assert capsys.readouterr().err == "stepcache: interrupted; why\n"
