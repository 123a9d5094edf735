"""The pages' code: Python runs on the demo pipeline, or is checked if it needs a GPU; commands are real ones."""

import contextlib
import importlib.util
import re
import shlex

import pytest
from support.doc_blocks import NotAsWritten, PageRun
from support.pages import INLINE, PAGES, Block, blocks_and_prose, blocks_of, name_of
from support.small import DEMO

from benchmarks import ROOT
from stepcache import cli

SHELLS = ("bash", "sh", "shell", "console")
# Blocks that nothing checks.
UNCHECKED = ("text", "json", "jsonl", "yaml", "toml", "csv", "dockerfile")
# Other people's commands.
OTHERS = ("cd", "mkdir", "export", "curl", "git", "pip", "docker", "torchrun", "pre-commit", "twine", "pytest")
WITH_PYTHON = [page for page in PAGES if any(block.language == "python" for block in blocks_of(page))]


def test_blocks_are_found_with_their_marks():
    text = """Text:

    indented

    more
<!-- needs a GPU -->
```python
fenced
```
- An item

    of two paragraphs.

1. Another
   ```sh
   in the item
   ```
"""
    blocks, prose = blocks_and_prose(text, "page.md")
    assert [(block.line, block.language, block.text.strip(), block.mark) for block in blocks] == [
        (3, "", "indented\n\nmore", ""),
        (8, "python", "fenced", "needs a GPU"),
        (16, "sh", "in the item", ""),
    ]
    assert prose.count("\n") == text.rstrip().count("\n") and "two paragraphs" in prose


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_python_runs(page, tmp_path, monkeypatch):
    run = PageRun(tmp_path, monkeypatch)
    for block in blocks_of(page):
        if block.language == "python":
            run.block(block)


@pytest.mark.parametrize(
    ("code", "mark", "message"),
    [
        ("from stepcache import accelerate\naccelerate(pipe, interval=0)", "", "page.md:8: InvalidSetting: interval"),
        ("restore(pipe)", "", "page.md:7: NameError"),
        ("accelerate(pipe,", "needs a GPU", "page.md:7: '(' was never closed"),
        ("from stepcache import acelerate", "needs a GPU", "page.md:7: stepcache has no acelerate"),
        ("from diffusers import NoPipeline", "needs a GPU", "page.md:7: diffusers has no NoPipeline"),
        (
            "from stepcache import accelerate\naccelerate(pipe, guided=1)",
            "needs a GPU",
            "page.md:8: accelerate: got an un",
        ),
        ("import stepcache\nstepcache.accelerate(pipe, 3, guidance='none')", "needs a GPU", "page.md:8: stepcache.acc"),
        ("from stepcache import Schedule\nSchedule.unifrom(3)", "needs a GPU", "page.md:8: Schedule has no unifrom"),
        ("from stepcache import warmup\nwarmup(pipe, 512)", "fragment: no size", "page.md:8: warmup: missing a requ"),
        ("1", "fragment:", "page.md:7: <!-- fragment: why --> says why"),
    ],
)
def test_wrong_python_is_found(code, mark, message, tmp_path, monkeypatch):
    with pytest.raises(NotAsWritten) as raised:
        PageRun(tmp_path, monkeypatch).block(Block("page.md", 7, "python", code, mark))
    assert str(raised.value).startswith(message)


def test_python_runs_small(tmp_path, monkeypatch):
    """The substitutions, on a page as one writes it for a GPU."""
    run = PageRun(tmp_path, monkeypatch)
    for code in (
        "import torch\nfrom diffusers import StableDiffusionXLPipeline, StableDiffusionPipeline, AutoencoderKL",
        'vae = AutoencoderKL.from_pretrained("path/to/vae", torch_dtype=torch.float16)',
        'pipe = StableDiffusionPipeline.from_pretrained("path/to/model", torch_dtype=torch.float16).to("cuda")',
        'xl = StableDiffusionXLPipeline.from_pretrained("path/to/xl", vae=vae).to("cuda", torch.bfloat16)',
        'image = pipe("a red apple", height=768, width=512, num_inference_steps=2).images[0]',
    ):
        run.block(Block("page.md", 1, "python", code))
    assert run.names["image"].size == (64, 96) and run.names["pipe"].dtype == run.names["xl"].dtype
    assert type(run.names["xl"]).__name__ == "StableDiffusionXLPipeline"


def commands_of(block):
    """The line and the words of each command of a block: of lines that go on, of pipes, and of `a && b`."""
    lines = block.text.split("\n")
    if block.language == "console":
        lines = [line[2:] if line.startswith("$ ") else "" for line in lines]
    number = 0
    while number < len(lines):
        start, text = number, lines[number]
        while text.endswith("\\") and number + 1 < len(lines):
            number += 1
            text = text[:-1] + lines[number]
        number += 1
        lexer = shlex.shlex(text, posix=True, punctuation_chars="&|;<>")
        lexer.whitespace_split = True
        words = []
        for word in [*lexer, ";"]:
            if set(word) <= set("&|;"):
                while words and re.fullmatch(r"\w+=.*", words[0]):
                    words = words[1:]
                if words:
                    yield f"{block.page}:{block.line + start}", words
                words = []
            else:
                words.append(word)


def wrong(place, words, page):
    """Why a command is none, or None."""
    if set(words) & {">", ">>", "<"}:
        words = words[: min(words.index(sign) for sign in (">", ">>", "<") if sign in words)]
    name, arguments = words[0].removeprefix(".venv/bin/"), words[1:]
    if name == "stepcache":
        return wrong_arguments(arguments)
    if name in ("python", "python3") and arguments[:1] == ["-m"]:
        module = arguments[1]
        ours = module.split(".")[0] in ("benchmarks", "stepcache")
        return f"no module {module}" if ours and importlib.util.find_spec(module) is None else None
    if name in ("python", "python3", "torchrun"):
        script = next((word for word in arguments if word.endswith(".py")), None)
        found = script is None or any((folder / script).is_file() for folder in (ROOT, page.parent))
        return None if found else f"no script {script}"
    if name == "make":
        targets = set(re.findall(r"^([\w.$()/-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))
        asked = [word for word in arguments if "=" not in word and not word.startswith("-")]
        missing = [word for word in asked if word not in targets and word != ".venv/.ready"]
        return f"no target {missing[0]}" if missing else None
    return None if name in OTHERS else f"{name} is no command that this test knows (OTHERS)"


def wrong_arguments(arguments):
    """What the command's own parser has against its arguments."""
    asked = arguments[0] if arguments and arguments[0] in cli.SUMMARIES else None
    parser = cli._parser(asked)
    told = []

    def error(message):
        told.append(message)
        raise SystemExit(2)

    for one in [parser, *parser._subparsers._group_actions[0].choices.values()]:
        one.error = error
    with contextlib.suppress(SystemExit):  # also for --help and --version
        parser.parse_args(arguments)
    return told[0] if told else None


SHELL = [
    (page, block)
    for page in PAGES
    for block in blocks_of(page)
    if block.language in ("", *SHELLS) and not block.mark.startswith("fragment: ")
]


@pytest.mark.parametrize(("page", "block"), [pytest.param(*both, id=both[1].place) for both in SHELL])
def test_commands_are_real(page, block):
    found = [(place, wrong(place, words, page), words) for place, words in commands_of(block)]
    assert found, f"{block.place}: no command in a block of commands"
    assert [f"{place}: {why}: {shlex.join(words)}" for place, why, words in found if why] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_in_sentences_are_real(page):
    for found in INLINE.finditer(blocks_and_prose(page.read_text())[1]):
        words = found[2].split()
        if words[:1] == ["stepcache"] and len(words) > 1:
            assert words[1] in cli.SUMMARIES or words[1].startswith("-"), found[0]
        if words[:1] == ["make"] and len(words) == 2:
            assert wrong("", words, page) is None, found[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepcache inspct sd15", "argument COMMAND: invalid choice"),
        ("stepcache compare path/to/pipeline --prompt-file x", "unrecognized arguments"),
        ("stepcache compile path/to/pipeline \\\n    --sizes 512", "the following arguments are required: --out"),
        ("pip install . && stepcache tune", "the following arguments are required"),
        ("X=1 python -m benchmarks.no_such", "no module"),
        ("python benchmarks/no_such.py", "no script"),
        ("make no-such", "no target"),
        ("stepcahe demo", "stepcahe is no command"),
        ("curl localhost | make nothing", "no target nothing"),
    ],
)
def test_wrong_commands_are_found(text, message):
    found = [wrong(place, words, ROOT / "README.md") for place, words in commands_of(Block("page.md", 1, "", text))]
    assert any(why and why.startswith(message) for why in found), found


INSPECTED = sorted({tuple(words[1:]) for _, block in SHELL for _, words in commands_of(block) if "inspect" in words})


@pytest.mark.slow
@pytest.mark.parametrize("arguments", INSPECTED, ids=" ".join)
def test_inspect_runs(arguments, capsys):
    """The one command that needs neither weights nor minutes; the tests of the others run them on the demo."""
    given = [DEMO if word.startswith("path/to/") else word for word in arguments]
    assert cli.main(given) == 0, capsys.readouterr().err
    assert capsys.readouterr().out


def test_no_mark_and_no_language_is_misspelt():
    known = r"|needs a GPU|fragment: .+|(table|figure): \w+|end"
    blocks = [block for page in PAGES for block in blocks_of(page)]
    assert [f"{block.place}: {block.mark}" for block in blocks if not re.fullmatch(known, block.mark)] == []
    languages = ("", "python", *SHELLS, *UNCHECKED)
    assert [f"{block.place}: {block.language}" for block in blocks if block.language not in languages] == []
