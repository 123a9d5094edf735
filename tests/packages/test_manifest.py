"""The manifest's text: everything in it is checked before it is believed."""

import json

import pytest

from stepcache.packages.manifest import Entry, Manifest, Unreadable, manifest_of

ENTRY = Entry("full graph 2x4", "full", "m", {"branch": 0, "joins": []}, {"a": 1}, [], "a-1.pt2", "0" * 64, 5, 1.5)
MANIFEST = Manifest({"torch": "2"}, {"m": {"class": "A"}}, (ENTRY,))


def changed(**changes):
    data = json.loads(MANIFEST.written())
    data["packages"][0].update(changes)
    return json.dumps(data)


def test_read_again():
    assert manifest_of(MANIFEST.written()) == MANIFEST


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "not JSON"),
        ("[" * 100000, "not JSON"),
        ("[]", "did not write"),
        ("{}", "did not write"),
        ('{"format": 99}', "format is 99"),
        ('{"format": 1}', "maker are damaged"),
        ('{"format": 1, "maker": {}, "models": {"a": 1}, "packages": []}', "models are damaged"),
        ('{"format": 1, "maker": {}, "models": {}, "packages": [1]}', "package 0 is damaged"),
        (changed(nbytes="5"), "package 0 is damaged"),
        (changed(more=1), "package 0 is damaged"),
        (changed(file="../../x.pt2"), "file name"),
        (changed(file="x"), "file name"),
        (changed(sha256="0"), "SHA-256"),
        (changed(model="other"), "no model other"),
    ],
)
def test_what_is_wrong_is_said(text, word):
    with pytest.raises(Unreadable, match=word):
        manifest_of(text)


def test_every_cut_is_noticed():
    text = MANIFEST.written()
    for end in range(len(text)):
        with pytest.raises(Unreadable):
            manifest_of(text[:end])


def test_packages_of_equal_keys_replace_each_other():
    newer = Entry(*list(vars(ENTRY).values())[:6], "b-2.pt2", "1" * 64, 6, 2.0)
    joined = Entry(**{**vars(ENTRY), "graph": {"branch": 0, "joins": [["x"]]}, "file": "c.pt2"})
    other = Entry(**{**vars(ENTRY), "model": "n", "file": "d.pt2"})
    manifest = MANIFEST.with_packages([newer], {}).with_packages([joined, other], {"n": {}, "unused": {}})
    assert [entry.file for entry in manifest.packages] == ["c.pt2", "d.pt2"]
    assert set(manifest.models) == {"m", "n"}
