import logging
import re
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


def test_it_runs_as_a_module():
    result = subprocess.run([sys.executable, "-m", "stepcache", "inspect"], capture_output=True, text=True, timeout=120)
    assert result.returncode == 2 and result.stderr.startswith("usage: stepcache inspect ")


HEAVY = {"torch", "numpy", "diffusers", "transformers", "PIL", "jinja2", "tqdm"}
HEAVY |= {f"stepcache.commands.{name}" for name in cli.SUMMARIES}


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["bench", "--nonsense"], *([name, "--help"] for name in cli.SUMMARIES)]
)
def test_what_only_the_parser_answers_imports_nothing_heavy(arguments):
    """So that it takes as long as Python itself does, some tenths of a second."""
    check = (
        f"import sys; from stepcache.cli import main\ntry: main({arguments})\nexcept SystemExit: pass\n"
        f"sys.exit(', '.join({HEAVY} & set(sys.modules)) or None)"
    )
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert bool(result.stdout) != (arguments == ["bench", "--nonsense"])


def helped(capsys, *arguments):
    with pytest.raises(SystemExit) as exit:
        cli.main([*arguments, "--help"])
    assert exit.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_help_has_every_command_under_its_task(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = helped(capsys)
    assert max(map(len, text.splitlines())) <= columns - 2
    for task, commands in cli.COMMANDS.items():
        (group,) = (part for part in text.split("\n\n") if part.startswith(f"{task}:\n"))
        assert re.findall(r"^  (\w+)  ", group, re.MULTILINE) == list(commands)
        assert all(" ".join(summary.split()) in " ".join(group.split()) for summary in commands.values())
    assert "positional arguments" not in text  # argparse's own list, without groups
    assert re.findall(r"^  (\d+)  ", text, re.MULTILINE) == ["0", "1", "2"] and "\n  130, 143, 129  ended by" in text


def test_every_command_has_its_two_files():
    folder = Path(cli.__file__).parent / "commands"
    assert {path.stem for path in (folder / "options").glob("[!_]*.py")} == set(cli.SUMMARIES)
    assert all((folder / f"{name}.py").exists() for name in cli.SUMMARIES)


@pytest.mark.parametrize("name", cli.SUMMARIES)
def test_every_command_explains_its_options(name, capsys):
    text = helped(capsys, name)
    assert text.startswith(f"usage: stepcache {name} [-h]") and "options:" in text


@pytest.mark.parametrize(
    "arguments", [[], ["nonsense"], ["inspect"], ["inspect", "sd15", "--nonsense"], ["inspect", "sd15", "--bat", "2"]]
)
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


def test_warnings_of_the_package_are_lines_like_its_errors(monkeypatch, capsys):
    def run(args):
        logging.getLogger("stepcache").warning("%d joins are slow", 2)
        logging.getLogger("stepcache").info("not for the shell")
        return 0

    monkeypatch.setattr(inspect, "run", run)
    assert cli.main(["inspect", "sd15"]) == 0
    assert capsys.readouterr().err == "stepcache: 2 joins are slow\n"
    assert not logging.getLogger("stepcache").handlers


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [(StepCacheError("too bad"), 2, "too bad"), (KeyboardInterrupt(), 130, "interrupted")],
)
def test_exit_statuses(error, status, words, monkeypatch, capsys):
    monkeypatch.setattr(inspect, "run", raising(error))
    assert cli.main(["inspect", "sd15"]) == status
    assert capsys.readouterr().err == f"stepcache: {words}\n"
