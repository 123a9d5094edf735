"""Images that are there whole or not at all, and that nothing overwrites."""

import errno
import io
import itertools
import json
import os
import random
import struct
import time
import zlib
from contextlib import suppress

import pytest
from folder import NO_LINKS, give_name, is_done, look, put, replacing, take_away
from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngInfo
from support.disks import full_disk
from support.forks import fork, kill, status, wait_for
from workers import join, leave

from stepcache.errors import InvalidSetting

RECORD = {"id": "000000", "prompt": "a fox", "negative": None, "guidance": 7.5}
OTHERS = {**RECORD, "prompt": "two foxes"}


def noise(side, seed=0):
    return Image.frombytes("RGB", (side, side), random.Random(seed).randbytes(3 * side * side))


IMAGE = noise(8)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "000000.png"


@pytest.fixture(params=[False, True], ids=["strict", "lenient"])
def pillow(request, monkeypatch):
    """With the setting by which some programs make Pillow take half an image."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", request.param)


@pytest.fixture
def data(path):
    """The bytes of an image that is done."""
    put(path, RECORD, IMAGE)
    data = path.read_bytes()
    path.unlink()
    return data


def png(text, image=IMAGE, form="PNG", **options):
    info = PngInfo()
    info.add_text("stepcache", text)
    file = io.BytesIO()
    image.save(file, form, **({"pnginfo": info} if form == "PNG" else {}), **options)
    return file.getvalue()


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def made_again(path, capsys):
    """Put the image where something broken is."""
    assert not is_done(path, RECORD)
    put(path, RECORD, IMAGE)
    assert capsys.readouterr().out == f"{path} was empty, cut off or damaged: it is made again.\n"
    assert is_done(path, RECORD)
    assert os.listdir(path.parent) == [path.name]


def test_an_image_is_there_with_its_record(path, capsys):
    assert not is_done(path, RECORD)
    put(path, RECORD, IMAGE)
    assert is_done(path, RECORD) and capsys.readouterr().out == ""
    with Image.open(path) as image:
        assert image.tobytes() == IMAGE.tobytes() and json.loads(image.info["stepcache"]) == RECORD
    assert os.listdir(path.parent) == [path.name]


def test_an_image_of_many_chunks(path):
    put(path, RECORD, noise(300))
    data, chance = path.read_bytes(), random.Random(0)
    assert data.count(b"IDAT") > 1 and is_done(path, RECORD)
    ends = [data.index(b"IDAT", data.index(b"IDAT") + 1) - 4, len(data) - 12]
    for end in [*ends, *(chance.randrange(len(data)) for _ in range(50))]:
        for rest in (b"", bytes([data[end] ^ 1]) + data[end + 1 :], data[end + 99 :]):
            path.write_bytes(data[:end] + rest)
            assert not is_done(path, RECORD)


def test_a_cut_at_any_byte_is_found_and_mended(path, data, pillow, capsys):
    for end in range(len(data)):
        path.write_bytes(data[:end])
        assert not is_done(path, RECORD)
        if end % 20 == 0:
            made_again(path, capsys)


def test_zeros_from_any_byte_are_found(path, data, pillow):
    """As after a power cut."""
    for end in range(len(data)):
        if any(data[end:]):
            path.write_bytes(data[:end] + bytes(len(data) - end))
            assert not is_done(path, RECORD)


def test_500_flips_are_found(path, data, pillow):
    chance = random.Random(0)
    for _ in range(500):
        broken = bytearray(data)
        broken[chance.randrange(len(data))] ^= chance.randrange(1, 256)
        path.write_bytes(broken)
        assert not is_done(path, RECORD)


@pytest.mark.parametrize("more", [b"\0", b"x", b"half of a chunk" * 9])
def test_bytes_behind_the_end_are_found(path, data, more, capsys):
    path.write_bytes(data + more)
    made_again(path, capsys)


@pytest.mark.parametrize("kind", [b"IHDR", b"IDAT", b"IEND"])
def test_a_chunk_that_is_not_there(path, data, kind, capsys):
    start = data.index(kind) - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    path.write_bytes(data[:start] + data[end:])
    made_again(path, capsys)


@pytest.mark.parametrize("text", [b"", b"no image", b"\0" * 5000, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_what_is_no_image_is_replaced(path, text, capsys):
    path.write_bytes(text)
    made_again(path, capsys)


def test_a_length_that_no_memory_holds(path, data, capsys):
    path.write_bytes(data[:33] + b"\x7f\xff\xff\xff" + data[37:])
    made_again(path, capsys)


@pytest.mark.parametrize(
    "theirs",
    [
        png(json.dumps(OTHERS)),
        png(json.dumps({**RECORD, "more": 1})),
        png(json.dumps(OTHERS)) + b"more",
        png("no JSON"),
        png("[" * 100_000),
        png("7" * 10_000),
        png(json.dumps([RECORD])),
        png("{}"),
        *(png("", form=form) for form in ("JPEG", "GIF", "BMP", "TIFF")),
        # Whole, and too large to decode: Pillow takes it for an attack.
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 10**5, 10**5, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b""),
    ],
    ids=lambda data: repr(data[:8]),
)
@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_an_image_of_something_else_stays(path, theirs):
    path.write_bytes(theirs)
    with pytest.raises(InvalidSetting, match=r"000000\.png is not of this batch \(.+, now .+\)\. Use another --out"):
        is_done(path, RECORD)
    with pytest.raises(InvalidSetting, match="is not of this batch"):
        put(path, RECORD, IMAGE)
    assert path.read_bytes() == theirs and os.listdir(path.parent) == [path.name]


def test_a_damaged_image_of_something_else_stays_if_it_can_still_be_seen(path):
    theirs = bytearray(png(json.dumps(OTHERS)))
    theirs[-1] ^= 1
    path.write_bytes(theirs)
    with pytest.raises(InvalidSetting, match="is not of this batch"):
        put(path, RECORD, IMAGE)
    assert path.read_bytes() == theirs


def test_a_folder_and_a_pipe_of_that_name_stay(path):
    for make in (os.mkfifo, os.mkdir):
        make(path)
        with pytest.raises(InvalidSetting, match="is not of this batch"):
            put(path, RECORD, IMAGE)
        assert os.listdir(path.parent) == [path.name]
        with suppress(PermissionError, IsADirectoryError):
            path.unlink()


def test_the_pillow_of_others_stays_lenient(path, pillow):
    was = ImageFile.LOAD_TRUNCATED_IMAGES
    path.write_bytes(b"x")
    is_done(path, RECORD)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is was


def test_an_image_that_is_there_meanwhile_stays(path):
    put(path, RECORD, IMAGE)
    first = path.read_bytes()
    put(path, RECORD, noise(8, seed=1))
    assert path.read_bytes() == first


@pytest.mark.parametrize("record", [RECORD, OTHERS])
def test_an_image_that_replaced_the_broken_one_meanwhile_is_not_taken_away(path, record):
    put(path, record, IMAGE)
    assert not take_away(path, RECORD)
    assert look(path) == (record, True) and os.listdir(path.parent) == [path.name]
    path.unlink()
    assert not take_away(path, RECORD)


def test_a_name_that_never_gets_free(path, monkeypatch):
    monkeypatch.setattr("folder.give_name", lambda part, path: path.write_bytes(b"junk") == 0)
    with pytest.raises(InvalidSetting, match="broken again each time it is replaced"):
        put(path, RECORD, IMAGE)


@pytest.mark.parametrize("number", sorted(NO_LINKS))
def test_without_hard_links(path, monkeypatch, capsys, number):
    def link(part, path):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("folder.os.link", link)
    path.write_bytes(b"")
    made_again(path, capsys)
    first = path.read_bytes()
    put(path, RECORD, noise(8, seed=1))
    assert path.read_bytes() == first
    with pytest.raises(InvalidSetting, match="is not of this batch"):
        put(path, OTHERS, IMAGE)
    assert path.read_bytes() == first and os.listdir(path.parent) == [path.name]


def test_other_errors_of_a_link_are_errors(path, monkeypatch):
    def link(part, path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("folder.os.link", link)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        put(path, RECORD, IMAGE)
    assert os.listdir(path.parent) == []


def test_a_full_disk_leaves_nothing(path):
    for nbytes in (0, 100, 5000):
        with full_disk(nbytes), pytest.raises(OSError):
            put(path, RECORD, noise(64))
        with full_disk(nbytes), pytest.raises(OSError), replacing(path) as file:
            file.write(bytes(9999))
        assert os.listdir(path.parent) == []
    path.write_bytes(b"a manifest")
    with full_disk(100), pytest.raises(OSError), replacing(path) as file:
        file.write(bytes(9999))
    assert path.read_bytes() == b"a manifest"


def test_a_folder_that_cannot_be_written(path):
    out = path.parent

    def write():
        os.chdir(out)
        if os.geteuid() == 0:  # root may write anywhere
            os.setuid(65534)
        for work in (lambda path: put(path, RECORD, IMAGE), lambda path: join(path.parent, {"steps": 2})):
            with pytest.raises(PermissionError) as caught:
                work(type(path)(path.name))
            assert caught.value.filename

    out.chmod(0o555)
    try:
        assert status(fork(write)) == 0
    finally:
        out.chmod(0o755)
    assert os.listdir(out) == []


def test_two_processes_that_make_the_same_overwrite_nothing(tmp_path):
    out, count = tmp_path / "out", 150
    out.mkdir()
    for i in range(0, count, 3):
        (out / f"{i:06d}.png").write_bytes(b"broken")
    reading, writing = os.pipe()

    def write(name):
        os.close(writing)
        os.read(reading, 1)  # both begin when the pipe is closed
        numbers = []
        for i in range(count):
            path = out / f"{i:06d}.png"
            put(path, {**RECORD, "id": path.stem}, noise(8, seed=i))
            numbers.append(path.stat().st_ino)
        (tmp_path / name).write_text(json.dumps(numbers))

    children = [fork(lambda name=name: write(name)) for name in "ab"]
    os.close(writing)
    os.close(reading)
    assert [status(child) for child in children] == [0, 0]
    assert json.loads((tmp_path / "a").read_text()) == json.loads((tmp_path / "b").read_text())
    assert sorted(os.listdir(out)) == [f"{i:06d}.png" for i in range(count)]
    assert all(is_done(path, {**RECORD, "id": path.stem}) for path in out.iterdir())


def test_20_kills_at_any_moment_lose_and_break_nothing(tmp_path):
    chance, seen, left = random.Random(), {}, 0
    image = noise(96)

    def write():
        join(tmp_path, {"steps": 2})
        for i in itertools.count():
            path = tmp_path / f"{i:06d}.png"
            if not is_done(path, {**RECORD, "id": path.stem}):
                put(path, {**RECORD, "id": path.stem}, image)

    for _ in range(20):
        before = len(seen)
        child = fork(write)
        wait_for(lambda before=before: len(list(tmp_path.glob("0*.png"))) > before)  # it has begun
        time.sleep(chance.uniform(0, 0.03))
        kill(child)
        found = {path: path.stat().st_ino for path in tmp_path.glob("0*.png")}
        assert all(is_done(path, {**RECORD, "id": path.stem}) for path in found)
        assert found.items() >= seen.items()  # nothing was made twice
        seen = found
        parts = len(list(tmp_path.glob(".*.part")))
        assert parts <= 1  # the last one's was removed by this one
        left += parts
    print(f"{len(seen)} images, {left} of 20 kills left a part")
    join(tmp_path, {"steps": 3})
    leave(tmp_path)
    assert set(os.listdir(tmp_path)) == {*(path.name for path in seen), ".job.lock", "job.json"}


def test_a_name_is_given_once(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(name)
    assert give_name(tmp_path / "a", tmp_path / "c") and not give_name(tmp_path / "b", tmp_path / "c")
    assert (tmp_path / "c").read_text() == "a"
