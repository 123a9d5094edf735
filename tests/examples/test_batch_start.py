"""How a worker of a batch starts: what is compiled, loaded and warmed up, and restarts that would fail."""

from dataclasses import replace

import pytest
from batch import compile_ahead, load_pipe, missing, read_tasks, start
from batch_torchrun import check_store
from support.batch_checks import names
from support.small import DEMO

from stepcache import accelerate
from stepcache.errors import GraphCompileError, InvalidSetting


@pytest.fixture
def calls(monkeypatch):
    """What the recipe compiles, accelerates with and warms up, in order; all of it runs eager."""
    found = []

    def accelerate_eager(pipe, *args, compile, cuda_graphs="auto", compiled=None, max_buckets):
        found.append(("accelerate", compile, cuda_graphs, compiled))
        return accelerate(pipe, *args, max_buckets=max_buckets)

    def save(pipe, path):
        found.append(("save", path))
        path.mkdir()

    monkeypatch.setattr("batch.accelerate", accelerate_eager)
    monkeypatch.setattr("batch.save_compiled", save)
    monkeypatch.setattr("batch.warmup", lambda pipe, *size, progress: found.append(("warm", *size)))
    return found


def test_one_worker_compiles_and_all_load(batch, calls):
    """test_batch_torchrun.py runs it."""
    batch = replace(batch, pipeline=DEMO, batch_size=3, compile=True)
    tasks, pipe = read_tasks(batch), load_pipe(batch, "cpu")
    compile_ahead(pipe, batch, tasks)
    warm = [("warm", 64, 32, 3, True), ("warm", 64, 64, 3, True)]
    assert calls == [("accelerate", False, False, None), *warm, ("save", batch.out / "compiled")]
    del calls[:]
    start(pipe, batch, tasks[:1])
    assert calls == [("accelerate", True, "auto", batch.out / "compiled"), warm[0]]
    assert names(batch) == ["compiled"]
    assert missing(batch, tasks) == tasks


@pytest.mark.parametrize("compile", ["auto", False])
def test_nothing_is_compiled_that_does_not_run(batch, calls, compile):
    """On a CPU, graphs are for those who ask for them; not even those that there are do run."""
    batch = replace(batch, pipeline=DEMO, compile=compile)
    batch.compiled.mkdir()
    tasks, pipe = read_tasks(batch), load_pipe(batch, "cpu")
    compile_ahead(pipe, batch, tasks)
    start(pipe, batch, tasks[:1])
    assert calls == [("accelerate", compile, "auto", None), ("warm", 64, 32, 1, True)]
    assert batch.has_graphs("cuda") == (compile == "auto")


def test_workers_go_on_where_nothing_can_be_compiled_ahead(batch, calls, monkeypatch, capsys):
    def save(pipe, path):
        raise GraphCompileError("no g++")

    monkeypatch.setattr("batch.save_compiled", save)
    batch = replace(batch, pipeline=DEMO, compile=True)
    tasks, pipe = read_tasks(batch), load_pipe(batch, "cpu")
    compile_ahead(pipe, batch, tasks)
    assert capsys.readouterr().out.endswith("workers compile the rest, each for itself. no g++\n")
    start(pipe, batch, tasks)
    assert calls[-3] == ("accelerate", True, "auto", None)


def test_restarts_that_would_fail_are_refused(monkeypatch):
    check_store()  # without torchrun
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "0")
    check_store()
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    with pytest.raises(InvalidSetting, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        check_store()
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    check_store()
