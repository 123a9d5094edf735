"""Loading: with the arguments that a capture needs, once for all pipes, and again after the last has gone."""

import gc
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from stepcache.packages import loaded
from stepcache.packages.loaded import ALIGNED, Package, load

CPU = torch.device("cpu")


class StandInLoader:
    """In place of torch's; doubles its inputs."""

    made = []  # noqa: RUF012

    def __init__(self, *arguments):
        self.arguments, self.seen = arguments, []
        self.made.append(self)

    def run(self, tensors):
        self.seen.append([tensor.data_ptr() for tensor in tensors])
        return [tensor * 2 for tensor in tensors]


@pytest.fixture(autouse=True)
def loader(monkeypatch):
    StandInLoader.made.clear()
    monkeypatch.setattr(torch._C._aoti, "AOTIModelPackageLoader", StandInLoader)
    monkeypatch.setattr(loaded, "_loaded", type(loaded._loaded)())
    monkeypatch.setattr(torch.cuda, "device", on_device)
    return StandInLoader.made


ENTERED = []


@contextmanager
def on_device(device):
    """In place of torch.cuda.device."""
    ENTERED.append(device.index)
    yield


def test_single_threaded_and_on_its_device(loader):
    """Which may not be the current one, whose stream a package would take."""
    ENTERED.clear()
    Package(Path("a.pt2"), CPU).run([torch.ones(1)])
    assert not ENTERED
    Package(Path("a.pt2"), torch.device("cuda", 1)).run([torch.ones(1)])
    assert ENTERED == [1, 1]
    assert [made.arguments for made in loader] == [("a.pt2", "model", True, 1, -1), ("a.pt2", "model", True, 1, 1)]


def test_a_torch_with_other_bindings(monkeypatch):
    seen = []

    class Model:
        loader = StandInLoader()

    def public(path, **options):
        seen.append((path, options))
        return Model

    monkeypatch.delattr(torch._C._aoti, "AOTIModelPackageLoader")
    monkeypatch.setattr(torch._inductor, "aoti_load_package", public)
    package = Package(Path("a.pt2"), CPU)
    assert seen == [("a.pt2", {"run_single_threaded": True, "device_index": -1})]
    assert torch.equal(package.run([torch.ones(2)])[0], torch.ones(2) * 2)


def test_one_for_all_pipes_until_the_last_is_gone(loader):
    first = load(Path("a.pt2"), "hash", CPU)
    assert load(Path("copied/a.pt2"), "hash", CPU) is first
    assert load(Path("a.pt2"), "other", CPU) is not first
    assert load(Path("a.pt2"), "hash", torch.device("cuda", 0)) is not first
    assert len(loader) == 3
    del first
    gc.collect()
    load(Path("a.pt2"), "hash", CPU)
    assert len(loader) == 4


def test_on_a_gpu_inputs_are_aligned(loader):
    """Inductor's kernels assume it, and packages check nothing."""
    memory = torch.arange(64, dtype=torch.float32)
    even, odd = memory[:8], memory[1:9]
    assert odd.data_ptr() % ALIGNED
    for device, copies in ((CPU, False), (torch.device("cuda", 0), True)):
        package = Package(Path("a.pt2"), device)
        assert [torch.equal(got, want * 2) for got, want in zip(package.run([even, odd]), (even, odd), strict=True)]
        first, second = loader[-1].seen[0]
        assert first == even.data_ptr() and (second == odd.data_ptr()) != copies


def test_a_watcher_runs_it(loader):
    seen = []

    def watch(function, tensors):
        seen.append(tensors)
        return function(tensors)

    package, tensors = Package(Path("a.pt2"), CPU), [torch.ones(1)]
    token = loaded.watcher.set(watch)
    try:
        assert package.run(tensors)[0].item() == 2
    finally:
        loaded.watcher.reset(token)
    assert seen == [tensors]
