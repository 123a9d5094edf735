import subprocess
import sys

import pytest

from stepcache.bench.command import command_line, running


def test_a_command_given_from_python_is_not_that_of_the_process(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/opt/bin/pytest", "-q"])
    with pytest.raises(ZeroDivisionError), running(["bench", "my model", "--steps", "2"]):
        assert command_line() == "stepcache bench 'my model' --steps 2"
        raise ZeroDivisionError
    assert "stepcache" not in command_line()


def test_a_process_of_another_kind_is_named_as_it_was_started(tmp_path):
    script = tmp_path / "mine.py"
    script.write_text("from stepcache.bench.command import command_line\nprint(command_line())")
    for started, name in (([script], "python mine.py"), (["-m", "mine"], "python -m mine")):
        command = [sys.executable, *started, "a b"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.stdout == f"{name} 'a b'\n", done.stderr
