"""Each link of each page leads somewhere, as GitHub shows pages."""

import posixpath
from urllib.parse import unquote, urlsplit

import pytest
from support.pages import PAGES, anchors_of, links_of, name_of

from benchmarks import ROOT

README = ROOT / "README.md"


def broken(page, text):
    for line, link in links_of(text):
        target = urlsplit(link)
        if target.scheme or target.netloc:
            continue
        path = (page.parent / unquote(target.path)).resolve() if target.path else page
        place = f"{name_of(page)}:{line}: {link}"
        if not path.is_relative_to(ROOT) or not path.exists():
            yield f"{place}: no such file"
        elif target.fragment:
            path = path / "README.md" if path.is_dir() else path
            there = text if path == page else path.read_text()
            if path.suffix == ".md" and target.fragment not in anchors_of(there):
                yield f"{place}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    assert list(broken(page, page.read_text())) == []


def test_broken_links_are_found():
    text = "\n".join(
        [
            "# Some `code`, & more",
            "[a file](no/such.py) and [an anchor](#some-code--more), [none](#some-code-more),",
            "[another page](docs/notes.md#no-such-heading), `[code](no/link)`, [`code`](no.md),",
            '<img src="none.png"> [two',
            "lines](none.md) [out](../..) [all right](docs/notes.md) [also](https://arxiv.org/abs/2312.00858#x)",
            "",
            "    [indented](no/link)",
        ]
    )
    found = [line.split(": ")[1] for line in broken(README, text)]
    assert found == [
        "no/such.py", "#some-code-more", "docs/notes.md#no-such-heading", "no.md", "none.png", "none.md", "../..",
    ]  # fmt: skip
    assert anchors_of(text + "\n## Again\n## Again") == {"some-code--more", "again", "again-1"}


def test_every_page_of_docs_can_be_found():
    linked = {
        posixpath.normpath(posixpath.join(posixpath.dirname(name_of(page)), urlsplit(link).path))
        for page in PAGES
        for _, link in links_of(page.read_text())
        if urlsplit(link).path
    }
    # A page that only links to itself does so by an anchor.
    assert [name for name in map(name_of, PAGES) if name.startswith("docs/") and name not in linked] == []
