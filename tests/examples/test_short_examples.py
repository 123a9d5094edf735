"""The scripts at the top of examples/: short, with a usage that is right, and each in the README's table."""

import ast
import re
import shlex

import pytest
from support.scripts import EXAMPLES, run_script

SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem != "train_demo")  # a record, not for copying
HELPED = [name for name in SCRIPTS if name != "img2img_server"]  # which takes two arguments and no options


def usage_of(name):
    """Words of the command in the script's docstring."""
    source = (EXAMPLES / f"{name}.py").read_text()
    (line,) = re.findall(r"^    python (.+)$", ast.get_docstring(ast.parse(source), clean=False), re.MULTILINE)
    return shlex.split(line)


def test_the_scripts_are_there():
    named = "animatediff batch_job controlnet img2img_server sdxl_lora_swap svd text_to_image"
    assert named.split() == SCRIPTS


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_short(name):
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 40
    assert usage_of(name)[0] == f"{name}.py"


@pytest.mark.parametrize("name", HELPED)
def test_a_script_takes_what_its_usage_says(name, monkeypatch, capsys):
    with pytest.raises(SystemExit, match="0"):
        run_script(name, "--help")
    assert f"    python {name}.py " in capsys.readouterr().out
    loaded = []

    def load(*args, **options):
        loaded.append(args)
        raise LookupError

    monkeypatch.setattr("diffusers.ModelMixin.from_pretrained", load)
    monkeypatch.setattr("diffusers.DiffusionPipeline.from_pretrained", load)
    monkeypatch.setattr("diffusers.AutoPipelineForText2Image.from_pretrained", load)
    with pytest.raises(LookupError):
        run_script(name, *usage_of(name)[1:])
    assert loaded and loaded[0][0].startswith("path/to/")


def test_the_table_has_a_row_for_each_example():
    rows = re.findall(r"^\| \[`(.+?)`\]\((.+?)\) \| .+ \| .+ \|$", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    names = [name for name, _ in rows]
    there = {path.relative_to(EXAMPLES).parts for pattern in ("*.py", "*.ipynb") for path in EXAMPLES.rglob(pattern)}
    shown = {parts[0] + "/" * (len(parts) > 1) for parts in there if not parts[0].startswith((".", "__"))}
    assert sorted(names) == sorted(shown)
    assert all((EXAMPLES / link).exists() for _, link in rows)
