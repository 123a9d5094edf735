"""Progress on a real pseudo-terminal, and where output is no terminal."""

import fcntl
import io
import os
import pty
import re
import struct
import sys
import termios
from contextlib import contextmanager

import pytest
import tqdm.auto
from support.terminals import read_terminal
from tqdm import tqdm as plain

from stepcache.progress import advance, progress


@contextmanager
def terminal(columns=80):
    """A pseudo-terminal as stderr; yields a list that has what it got, once it is closed."""
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    seen = []
    with pytest.MonkeyPatch.context() as patch, os.fdopen(side, "w", buffering=1) as stderr:
        patch.setattr(sys, "stderr", stderr)
        yield seen
    seen.append(read_terminal(main))


def untimed(text):
    """Without the seconds, of which a busy machine needs more."""
    return re.sub(r"\[\d\d:\d\d(<[\d:?]+)?\]", "[]", text)


def test_a_terminal_has_one_line_that_ends():
    with terminal() as seen:
        with progress("first", 20, "runs") as bar:
            for _ in range(20):  # a pseudo-terminal holds some 4,000 bytes
                advance(bar, "second " * 20)
        sys.stderr.write("what follows\n")
    *bars, follows, end = seen[0].split("\n")
    assert (len(bars), follows, end) == (1, "what follows", "")
    states = bars[0].split("\r")
    assert untimed(states[1]).rstrip().endswith("0/20 runs [] first")
    assert untimed(states[-1]).startswith("100%|██████████| 20/20 runs [] second second")
    assert max(map(len, states)) < 80


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_terminal_s_line_ends_at_an_error_too(error):
    with terminal() as seen, pytest.raises(error), progress("working", 4, "runs") as bar:
        bar.update()
        raise error
    assert untimed(seen[0]).endswith("25%|██▌       | 1/4 runs [] working\n")


def test_a_terminal_of_unknown_width_has_lines():
    with terminal(columns=0) as seen, progress("working", 4, "runs"):
        pass
    assert untimed(seen[0]) == "  0% 0/4 runs [] working\n" * 2


def test_messages_on_a_terminal_are_lines_above_the_bar():
    with terminal() as seen, progress("working", 4, "runs"):
        plain.write("a message", file=sys.stderr)
    assert "\ra message\n\r  0%|" in seen[0]


def lines(capsys):
    output, errors = capsys.readouterr()
    assert output == "" and "\r" not in errors and errors.endswith("\n")
    return untimed(errors).splitlines()


def test_elsewhere_there_is_a_line_at_the_start_at_each_tenth_and_at_the_end(capsys):
    with progress("first", 3000, "runs") as bar:
        bar.mininterval = 0  # as if each took long
        for i in range(3000):
            advance(bar, f"run {i}")
    seen = lines(capsys)
    assert seen[0] == "  0% 0/3000 runs [] first"
    assert [line.split()[:2] for line in seen] == [[f"{10 * i}%", f"{300 * i}/3000"] for i in range(11)]
    assert seen[1].endswith("] run 299") and seen[-1].endswith("] run 2999")


@pytest.mark.parametrize(("news", "expected"), [(False, (30, 60, 90)), (True, (5, 20, 35, 50, 65, 80))])
def test_elsewhere_a_line_comes_when_none_came_for_long_or_something_else_goes_on(news, expected, capsys):
    with progress("part 0", 1000, "runs") as bar:
        for second in range(95):
            bar._time = lambda now=bar.start_t + second: now
            advance(bar, f"part {(second + 10) // 15}" if news else "part 0")
    seen = [line.split()[1] for line in lines(capsys)]
    assert seen == ["0/1000", *(f"{second + 1}/1000" for second in expected), "95/1000"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_elsewhere_the_last_line_is_whole_at_an_error_too(error, capsys):
    with pytest.raises(error), progress("working", 4, "runs") as bar:
        bar.update()
        raise error
    assert lines(capsys)[-1] == " 25% 1/4 runs [] working"


def test_elsewhere_each_tenth_has_a_line_however_fast_they_pass(capsys):
    with progress("begins", 1000, "images") as bar:
        for _ in range(1000):
            bar.update()
    lines = untimed(capsys.readouterr().err).splitlines()
    assert [line.split()[1] for line in lines] == [f"{done}/1000" for done in range(0, 1001, 100)]


def test_without_a_total_each_description_is_a_line(capsys):
    with progress("warm-up", unit="stages") as bar:
        for what in ("compiling", "compiling", "capturing"):
            advance(bar, what)
    assert lines(capsys) == [
        f"{n} stages [] {what}" for n, what in ((0, "warm-up"), (1, "compiling"), (3, "capturing"), (3, "capturing"))
    ]


def test_images_in_parts_are_counted_whole(capsys):
    with progress("image", 2, "images") as bar:
        for _ in range(6):
            bar.update(1 / 3)
    assert lines(capsys)[-1].startswith("100% 2/2 images")


def test_over_a_collection(capsys):
    assert list(progress("settings", unit="settings", over="ab")) == ["a", "b"]
    assert lines(capsys)[-1].startswith("100% 2/2 settings")


def test_messages_between_lines_are_lines(capsys):
    with progress("working", 2, "runs") as bar:
        bar.update()
        plain.write("a message", file=sys.stderr)
    assert "a message" in lines(capsys)


@pytest.mark.parametrize("stderr", [None, io.StringIO()])
def test_nothing_is_shown(stderr, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stderr)
    with progress("quiet", 2, "runs", shown=stderr is None) as bar:
        advance(bar, "still quiet")
    assert stderr is None or stderr.getvalue() == ""


def test_a_notebook_has_its_widget(monkeypatch):
    class Widget(plain):
        def display(self, *args, **kwargs):
            return True

    monkeypatch.setattr(tqdm.auto, "tqdm", Widget)
    with progress("in a notebook", 2, "runs") as bar:
        assert type(bar) is Widget and bar.bar_format is None
