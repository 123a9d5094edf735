"""A batch with two actors of Ray Data on CPUs. Ray itself starts slowly."""

import shutil

import pytest
from support.batch_checks import HERE, NO_COMPILER, OWN, RECIPES, command_line, images, prompts_file, run, run_here

pytest.importorskip("ray.data")

WORKERS = ["--workers", "2", "--cpu", "--compile", "off"]


@pytest.mark.parametrize("raises", [False, True])
def test_an_actor_whose_pipeline_failed_ends(monkeypatch, raises):
    import batch_ray

    def work(pipe, batch, tasks, worker):
        if raises:
            raise RuntimeError("CUDA error")
        return tasks

    def end(status):
        raise SystemExit(status)

    monkeypatch.setattr("batch_ray.work", work)
    monkeypatch.setattr("batch_ray.os._exit", end)
    worker = object.__new__(batch_ray.Worker)
    worker.batch, worker.pipe, worker.tasks = None, None, {"000001": "a task"}
    done = {"id": ["000000"]}
    if not raises:
        assert worker(done) is done
    with pytest.raises(SystemExit, match="1"):
        worker({"id": ["000000", "000001"]})


@pytest.mark.slow
def test_killed_actors_lose_nothing_and_a_task_that_kills_them_is_given_up(single, tmp_path):
    """An actor is killed once, and each that gets one task. The next start makes what is missing, here with torchrun's
    recipe: a batch is not bound to one."""
    out, prompts = tmp_path / "out", prompts_file(tmp_path)
    start = [HERE / "batch_killed_ray.py", *command_line(prompts, out, *WORKERS)]
    output = run(start, status=1, FOLDER=str(tmp_path), POISON="000003")
    assert (tmp_path / "died").exists()
    assert (tmp_path / "poisoned").read_text() == "xx"  # once and a retry
    assert "1 images are missing: 000003" in output
    assert images(out) == {name: data for name, data in single.items() if name != "000003.png"}
    assert sorted(f"{id}.png" for id in (tmp_path / "log").read_text().split()) == sorted(images(out))
    run_here(*command_line(prompts, out))
    assert images(out) == single
    assert {path.name for path in out.iterdir()} == {*single, *OWN}


@pytest.mark.slow
def test_actors_load_what_is_compiled(tiny, tiny_packages, tmp_path):
    """Where there is no compiler."""
    out, prompts = tmp_path / "out", prompts_file(tmp_path)
    shutil.copytree(tiny_packages, out / "compiled")
    options = ["--workers", "2", "--cpu", "--compile", "on"]
    start = [RECIPES / "batch_ray.py", *command_line(prompts, out, *options, pipeline=tiny)]
    output = run(start, **NO_COMPILER, TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"))
    assert "0 images are missing" in output
    assert "Not everything is compiled ahead" not in output
    assert "does not run from a package" not in output
