import os
import subprocess
import sys
from pathlib import Path

import pytest

from stepcache import __version__, cli
from stepcache.commands import inspect
from stepcache.errors import StepCacheError


def raising(error):
    def run(args):
        raise error

    return run


def test_the_installed_command_runs():
    command = Path(sys.executable).with_name("stepcache")
    result = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout.strip()) == (0, f"stepcache {__version__}")


def test_help_lists_every_command_and_imports_none():
    check = (
        "import sys; from stepcache.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'diffusers', 'PIL', 'stepcache.commands.demo', 'stepcache.commands.inspect'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or None)"
    )
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stderr) == (0, "")
    for name, summary in cli.COMMANDS.items():
        assert name in result.stdout and summary.split()[0] in result.stdout


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_explains_its_options(name, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main([name, "--help"])
    assert exit.value.code == 0
    assert "options:" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["inspect"], ["inspect", "sd15", "--nonsense"]])
def test_arguments_that_do_not_parse_leave_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(arguments)
    assert exit.value.code == 2
    assert "usage: stepcache" in capsys.readouterr().err


def test_an_error_of_ours_is_one_line_and_no_traceback(capsys):
    assert cli.main(["inspect", "no/such/place"]) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith("stepcache: 'no/such/place' does not exist.")
    assert errors.count("\n") == 1


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(inspect, "run", raising(PermissionError(13, "Permission denied", "x/config.json")))
    assert cli.main(["inspect", "sd15"]) == 2
    assert capsys.readouterr().err == "stepcache: x/config.json: Permission denied\n"


def test_other_errors_are_bugs_and_keep_their_traceback(monkeypatch):
    monkeypatch.setattr(inspect, "run", raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        cli.main(["inspect", "sd15"])


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [(StepCacheError("too bad"), 2, "too bad"), (KeyboardInterrupt(), 130, "interrupted")],
)
def test_exit_statuses(error, status, words, monkeypatch, capsys):
    monkeypatch.setattr(inspect, "run", raising(error))
    assert cli.main(["inspect", "sd15"]) == status
    assert capsys.readouterr().err == f"stepcache: {words}\n"


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    read, write = os.pipe()
    os.close(read)
    check = (
        "import sys; from stepcache import cli; from stepcache.commands import inspect\n"
        "inspect.run = lambda args: print('x' * 100_000) or 0\n"
        "sys.exit(cli.main(['inspect', 'sd15']))"
    )
    result = subprocess.run([sys.executable, "-c", check], stdout=write, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(write)
    assert (result.returncode, result.stderr) == (0, "")
