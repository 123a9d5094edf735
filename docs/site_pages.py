"""The site's pages from the repository's: `mkdocs.yml` names this file as a hook.

Pages outside of docs/ become pages of the site where they are, so no text is copied. Every page is written for GitHub:
its links are relative to its own place in the repository, and its figures are `<picture>` elements. Here links between
pages become links of the site, figures follow the site's palette, and links to sources, which the site does not have,
lead to `repo_url`; as long as mkdocs.yml has none, their text stays without a link.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from urllib.parse import urlsplit
from xml.etree.ElementTree import Element

from markdown import Extension, Markdown
from markdown.treeprocessors import Treeprocessor
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

log = get_plugin_logger("stepcache")

ROOT = Path(__file__).parents[1]

PAGES = ("*.md", "benchmarks/*.md", "benchmarks/results/*.md", "csrc_triton/*.md", "examples/**/*.md")
"""Pages outside of docs/."""
DATA = ("benchmarks/results/*.svg", "benchmarks/results/*.png", "benchmarks/results/*.csv", "csrc_triton/*.csv")
"""Figures, and the CSVs behind them."""

PICTURE = re.compile(
    r'^<picture>\s*<source media="\(prefers-color-scheme: dark\)" srcset="(?P<dark>[^"]+)">\s*'
    r'<img src="(?P<light>[^"]+)" alt="(?P<alt>[^"]*)"(?: width="(?P<width>\d+)")?>\s*</picture>$',
    re.MULTILINE,
)
RAW = re.compile(r"^ {0,3}<(?:picture|img|source)\b.*$", re.MULTILINE)


def place_on_site(path: str) -> str:
    """Where a file of the repository is on the site: docs/ is its top, and the rest keeps its place."""
    return path.removeprefix("docs/")


def place_in_repository(uri: str) -> str:
    """The opposite: a file of the site that is not at this place in the repository is one of docs/."""
    return f"docs/{uri}" if (ROOT / "docs" / uri).is_file() else uri


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the extension that rewrites links; the pages to render are known only later."""
    config.markdown_extensions.append(_links)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages outside of docs/, and what they show."""
    for path in sorted(path for pattern in (*PAGES, *DATA) for path in ROOT.glob(pattern)):
        uri = place_on_site(path.relative_to(ROOT).as_posix())
        files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put figures and folded parts into the site's form; the extension then finds the links."""
    _links.start(page, config, files)
    text = PICTURE.sub(_figure, markdown)
    for left in RAW.findall(text):
        log.warning("%s: a figure in a form that docs/site_pages.py does not know: %s", page.file.src_uri, left)
    return text.replace("<details>", '<details markdown="1">')


def _figure(found: re.Match[str]) -> str:
    width = f'width="{found["width"]}"' if found["width"] else ""
    images = [f"![{found['alt']}]({found[mode]}#only-{mode}){{ {width} }}" for mode in ("light", "dark")]
    return "\n" + " ".join(images) + "\n"


class _Links(Extension):
    """Rewrites the links of the page that is being rendered; mkdocs then checks and resolves them."""

    def start(self, page: Page, config: MkDocsConfig, files: Files) -> None:
        self.page, self.files, self.repo_url = page, files, (config.repo_url or "").rstrip("/")

    def extendMarkdown(self, md: Markdown) -> None:
        # After attribute lists, before mkdocs's own, which has priority 0.
        md.treeprocessors.register(_LinksTree(md, self), "repository_links", 1)

    def rewrite(self, element: Element, attribute: str) -> None:
        target = urlsplit(element.get(attribute, ""))
        if target.scheme or target.netloc or not target.path:
            return
        here = place_in_repository(self.page.file.src_uri)
        path = posixpath.normpath(posixpath.join(posixpath.dirname(here), target.path))
        uri = self._on_site(path)
        if uri is not None:
            relative = posixpath.relpath(uri, posixpath.dirname(self.page.file.src_uri) or ".")
            element.set(attribute, target._replace(path=relative).geturl())
        elif not (ROOT / path).exists():
            log.warning("%s: no such file in the repository: %s", self.page.file.src_uri, target.path)
        elif self.repo_url:
            kind = "tree" if (ROOT / path).is_dir() else "blob"
            element.set(attribute, target._replace(path=f"{self.repo_url}/{kind}/main/{path}").geturl())
        else:
            name = len(element) == 0 and " " not in (element.text or " ")
            element.tag, element.attrib = "code" if name else "span", {"title": path, "class": "source"}

    def _on_site(self, path: str) -> str | None:
        """The page or file of the site for a path in the repository. GitHub shows a folder with its README."""
        for name in (path, f"{path}/README.md"):
            uri = place_on_site(posixpath.normpath(name))
            if self.files.get_file_from_path(uri) is not None:
                return uri
        return None


class _LinksTree(Treeprocessor):
    def __init__(self, md: Markdown, links: _Links) -> None:
        super().__init__(md)
        self.links = links

    def run(self, root: Element) -> None:
        for element in root.iter():
            for tag, attribute in (("a", "href"), ("img", "src")):
                if element.tag == tag:
                    self.links.rewrite(element, attribute)


_links = _Links()
