"""`make docs`: the site builds without a warning, and shows what GitHub shows."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest
from support.pages import PAGES, name_of

from benchmarks import ROOT

pytest.importorskip("material", reason="needs mkdocs-material: pip install stepcache[docs]")


def build(folder):
    """The site in `folder`, by the command of `make docs`."""
    (arguments,) = re.findall(r"\bmkdocs (build .*)", (ROOT / "Makefile").read_text())
    command = [sys.executable, "-m", "mkdocs", *arguments.split(), "-d", str(folder)]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    result = build(folder)
    assert result.returncode == 0, result.stdout + result.stderr
    # With --quiet, mkdocs counts no warnings, and is not strict.
    assert "Documentation built" in result.stderr
    return folder


class Tags(HTMLParser):
    """The tags of a page of the site, and its text outside of code."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text, self._code = [], "", 0
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._code += tag in ("code", "script", "style")

    def handle_endtag(self, tag):
        self._code -= tag in ("code", "script", "style")

    def handle_data(self, data):
        self.text += "" if self._code else data

    def all(self, attribute):
        return [found[attribute] for _, found in self.tags if found.get(attribute)]


@pytest.fixture(scope="module")
def pages(site):
    return {path: Tags(path) for path in site.rglob("*.html") if path.name != "404.html"}


def test_every_page_is_there(site, pages):
    shown = [page for page in map(name_of, PAGES) if not page.startswith(("src/", "tests/"))]
    names = [re.sub(r"(^|/)README$", r"\1index", page.removeprefix("docs/").removesuffix(".md")) for page in shown]
    assert {site / f"{name}.html" for name in names} == set(pages)


def test_links_and_figures_lead_somewhere(pages):
    """Checked on the files themselves: mkdocs does not look into HTML in a page, and knows no figures by palette."""
    missing = []
    for path, page in pages.items():
        for link in [*page.all("href"), *page.all("src")]:
            target = urlsplit(link)
            there = path if not target.path else (path.parent / unquote(target.path)).resolve()
            if target.scheme or target.netloc:
                continue
            anchor = target.fragment if there in pages and target.fragment != "__skip" else ""
            if not there.is_file() or (anchor and anchor not in pages[there].all("id")):
                missing.append(f"{path.name}: {link}")
    assert missing == []


def test_nothing_comes_from_the_network(pages):
    for page in pages.values():
        loaded = [found.get("src") or found.get("href") for tag, found in page.tags if tag in ("script", "link", "img")]
        assert [address for address in loaded if address and urlsplit(address).netloc] == []


def test_figures_follow_the_palette(pages):
    images = [link for page in pages.values() for link in page.all("src") if ".svg" in link]
    light = [link for link in images if link.endswith("-light.svg#only-light")]
    assert light and sorted(images) == sorted([*light, *(link.replace("light", "dark") for link in light)])


def test_tables_and_lists_are_tables_and_lists(pages):
    """Python-Markdown wants an empty line before them, and Markdown in HTML said so; GitHub does not."""
    for path, page in pages.items():
        assert not re.search(r"\| ?-{3}|^[-*] \S|^\d+\. \S|\]\(|<!--|^```", page.text, re.MULTILINE), path


def test_sources_are_links_once_the_repository_has_an_address(site, tmp_path):
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    architecture = (site / "architecture.html").read_text()
    assert '<code class="source" title="src/stepcache/api.py">api.py</code>' in architecture
    config = load_config(str(ROOT / "mkdocs.yml"), repo_url="https://example.org/a/b/", site_dir=str(tmp_path))
    build(config)
    architecture = (tmp_path / "architecture.html").read_text()
    assert '<a href="https://example.org/a/b/blob/main/src/stepcache/api.py">api.py</a>' in architecture
    assert '<a href="https://example.org/a/b/tree/main/src/stepcache/forwards">forwards/</a>' in architecture


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[text](no-such-page.md)", "no such file in the repository: no-such-page.md"),
        ("[text](notes.md#no-such-heading)", "does not contain an anchor '#no-such-heading'"),
        ('<img src="rooms-light.svg">', "a figure in a form that docs/site_pages.py does not know"),
    ],
)
def test_what_is_wrong_fails(text, reason, tmp_path, caplog):
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    another = tmp_path / "another.py"
    another.write_text(
        "from mkdocs.structure.files import File\n"
        "def on_files(files, config):\n"
        f"    files.append(File.generated(config, 'another.md', content={text!r}))\n"
    )
    hooks = [str(ROOT / "docs" / "site_pages.py"), str(another)]
    config = load_config(str(ROOT / "mkdocs.yml"), strict=True, hooks=hooks, site_dir=str(tmp_path / "site"))
    with pytest.raises(SystemExit):
        build(config)
    assert reason in caplog.text
