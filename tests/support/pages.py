"""The pages of the repository as GitHub reads them: their blocks of code, links and anchors."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from benchmarks import ROOT

FOLDERS = ("benchmarks", "csrc_triton", "docs", "examples", "src", "tests")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])

FENCE = re.compile(r" {0,3}(```+|~~~+)(\S*)")
LIST = re.compile(r" {0,3}([-*+]|\d+[.)]) ")
COMMENT = re.compile(r"<!-- (.*?) -->\s*$")
LINK = re.compile(r"\]\(<?([^()\s>]+)>?(?:\s+\"[^\"]*\")?\)|\b(?:src|srcset|href)=\"([^\"]+)\"")
HEADING = re.compile(r"(#{1,6}) +(.*?)(?: +#+)?$")
INLINE = re.compile(r"(`+)(.+?)\1", re.DOTALL)


def name_of(page: Path) -> str:
    """A page's path in the repository."""
    return page.relative_to(ROOT).as_posix()


@dataclass(frozen=True)
class Block:
    """A block of code: fenced, or indented, which has no language. line: of its first line. mark: the comment above."""

    page: str
    line: int
    language: str
    text: str
    mark: str = ""

    @property
    def place(self) -> str:
        """For messages."""
        return f"{self.page}:{self.line}"


@cache
def blocks_and_prose(text: str, page: str = "page.md") -> tuple[tuple[Block, ...], str]:
    """The blocks of a page, and its text with an empty line in the place of each line of code."""
    blocks, prose, above = [], [], ""
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        line, start = lines[number], number
        fence = FENCE.match(line)
        if fence:
            number += 1
            while number < len(lines) and not lines[number].strip().startswith(fence[1]):
                number += 1
            code, first, number = lines[start + 1 : number], start + 2, number + 1
            indent = len(line) - len(line.lstrip())
            code = [found[indent:] if found[:indent].isspace() else found for found in code]
        elif line.startswith("    ") and _may_be_code(lines, start):
            while number < len(lines) and (not lines[number].strip() or lines[number].startswith("    ")):
                number += 1
            code, first = [found[4:] for found in lines[start:number]], start + 1
        else:
            prose.append(line)
            above = line or above
            number += 1
            continue
        mark = COMMENT.match(above)
        blocks.append(Block(page, first, fence[2] if fence else "", "\n".join(code), mark[1] if mark else ""))
        prose += [""] * (number - start)
        above = ""
    return tuple(blocks), "\n".join(prose)


def _may_be_code(lines: list[str], number: int) -> bool:
    """Whether an indented line is code: after an empty one (or the first), and not inside of an item of a list."""
    before = [line for line in lines[:number] if line.strip()]
    if number and lines[number - 1].strip():
        return False
    outer = next((line for line in reversed(before) if not line.startswith("    ")), "")
    return not (LIST.match(outer) or outer.startswith("  "))


def blocks_of(page: Path) -> tuple[Block, ...]:
    """The blocks of code of a page."""
    return blocks_and_prose(page.read_text(), name_of(page))[0]


def links_of(text: str) -> list[tuple[int, str]]:
    """The line and the target of each link and image of a page."""
    prose = INLINE.sub(lambda found: re.sub(r"[^\n`]", "x", found[0]), blocks_and_prose(text)[1])
    return [(prose.count("\n", 0, found.start()) + 1, found[1] or found[2]) for found in LINK.finditer(prose)]


def anchors_of(text: str) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    found: set[str] = set()
    for line in blocks_and_prose(text)[1].splitlines():
        heading = HEADING.match(line)
        if heading:
            plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading[2]).replace("`", "")
            name = base = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
            again = 0
            while name in found:
                again += 1
                name = f"{base}-{again}"
            found.add(name)
    return found


def words_of(text: str) -> list[str]:
    """The words that one reads in a page: not its code blocks, tables, HTML and comments, nor the targets of links."""
    prose = blocks_and_prose(text)[1]
    prose = re.sub(r"<!--.*?-->|<details>.*?</details>|<[^>]+>", " ", prose, flags=re.DOTALL)
    prose = re.sub(r"^\|.*$", " ", prose, flags=re.MULTILINE)
    prose = re.sub(r"!\[[^\]]*\]\([^)]*\)", " ", prose)
    prose = re.sub(r"\]\([^)]*\)", "]", prose)
    return [word for word in prose.split() if re.search(r"\w", word)]
