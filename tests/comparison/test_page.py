"""The page's file, and pictures beside it."""

import base64
import re
import subprocess
import sys
import time
from dataclasses import replace
from html import unescape

import pytest
from PIL import Image
from support.disks import full_disk

from stepcache.comparison import page
from stepcache.comparison.page import check_pictures, write_page
from stepcache.comparison.results import Compared, Comparison, Shot, Variant
from stepcache.errors import InvalidSetting
from stepcache.images.make import Request

PIXEL = Image.new("RGB", (8, 8))


def uri(number, nbytes=30_000):
    """That of a picture of its own."""
    return f"data:image/webp;base64,{base64.b64encode(str(number).encode().ljust(nbytes)).decode()}"


def comparison(prompts, first=0, nbytes=30_000):
    """Three variants: seven pictures a prompt."""
    shot = Shot("", PIXEL, 1.0, "FP", psnr=20.0, ssim=0.9)
    results = []
    for i in range(first, first + prompts):
        shots = [
            replace(shot, picture=uri(f"{i} {j}", nbytes), difference=uri(f"{i} {j} off", nbytes) if j else "")
            for j in range(4)
        ]
        results.append(Compared(Request(f"prompt {i}", i, 2, {"negative_prompt": None}), 64, 64, shots[0], shots[1:]))
    return Comparison("model", "A summary.", [Variant(n, 0) for n in (2, 3, 5)], results)


def sources(path):
    return re.findall(r'<img [^>]*src="([^"]*)"', path.read_text())


def test_a_small_page_is_one_file(tmp_path):
    path = tmp_path / "a.html"
    assert write_page(comparison(2), path) is None
    assert len(sources(path)) == 14 and all(source.startswith("data:") for source in sources(path))
    assert [each.name for each in tmp_path.iterdir()] == ["a.html"]


def test_the_pictures_of_a_thousand_prompts_are_beside_the_page(tmp_path):
    path = tmp_path / "a & b.html"
    folder = write_page(comparison(1000, nbytes=3000), path)
    assert folder == tmp_path / "a & b_files"
    found = sources(path)
    assert len(found) == 7000 and path.stat().st_size < 10_000_000
    assert {source.removeprefix("a%20%26%20b_files/") for source in found} == {each.name for each in folder.iterdir()}
    assert path.read_text().count('loading="lazy"') == 7000
    assert "img-src data: 'self' file:; style-src" in unescape(path.read_text())
    name = found[0].rpartition("/")[2]
    assert (folder / name).read_bytes() == b"0 0".ljust(3000)


def test_pictures_that_only_the_old_page_had_are_removed_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "INSIDE", 1000)
    path, folder = tmp_path / "a.html", tmp_path / "a_files"
    write_page(comparison(2), path)
    (folder / "mine.webp").touch()
    write_page(comparison(2, first=1), path)
    assert {each.name for each in folder.iterdir()} == {"mine.webp", *(s.partition("/")[2] for s in sources(path))}
    monkeypatch.undo()
    write_page(comparison(1), path)
    assert [each.name for each in folder.iterdir()] == ["mine.webp"]
    (folder / "mine.webp").unlink()
    write_page(comparison(1), path)
    assert [each.name for each in tmp_path.iterdir()] == ["a.html"]


def test_where_pictures_cannot_be_is_said_before(tmp_path):
    path, folder = tmp_path / "a.html", tmp_path / "a_files"
    check_pictures(path)
    folder.symlink_to(tmp_path / "nowhere")
    with pytest.raises(InvalidSetting, match=r"a_files is no folder"):
        check_pictures(path)
    folder.unlink()
    folder.mkdir()
    check_pictures(path)
    assert list(tmp_path.rglob("*")) == [folder]


def test_on_a_full_disk_the_old_page_stays_with_its_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "INSIDE", 1000)
    path = tmp_path / "a.html"
    write_page(comparison(2), path)
    before = path.read_text()
    for limit, name in ((20_000, r"a_files/\w+\.webp"), (31_000, r"a\.html")):
        with full_disk(limit), pytest.raises(OSError, match=name):
            write_page(comparison(40, first=1), path)
        assert path.read_text() == before and all(
            (tmp_path / source).stat().st_size == 30_000 for source in sources(path)
        )


WRITER = """
import sys
sys.path[:0] = sys.argv[2:]
from comparison import test_page
from pathlib import Path
test_page.page.INSIDE = 1000
first = 0
while True:
    test_page.write_page(test_page.comparison(2, first := first + 1), Path(sys.argv[1]))
"""


def test_kills_leave_a_page_with_its_pictures(tmp_path):
    path = tmp_path / "a.html"
    for delay in (0.1, 0.25, 0.4):
        path.unlink(missing_ok=True)
        writer = subprocess.Popen([sys.executable, "-c", WRITER, path, *filter(None, sys.path)])
        while not path.exists():
            assert writer.poll() is None
            time.sleep(0.01)
        time.sleep(delay)
        writer.kill()
        writer.wait()
        assert path.read_text().endswith("</html>") and len(sources(path)) == 14
        assert all((tmp_path / source).stat().st_size == 30_000 for source in sources(path))
