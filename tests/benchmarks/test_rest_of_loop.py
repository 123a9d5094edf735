import pytest
import torch
from diffusers import HeunDiscreteScheduler

from benchmarks.engine import rest_of_loop
from stepcache.bench.rows import read
from stepcache.run import timesteps


def test_a_small_run(tmp_path, capsys):
    path = tmp_path / "rows.csv"
    step = HeunDiscreteScheduler.step
    options = (
        "--device cpu --scheduler DDIMScheduler HeunDiscreteScheduler --steps 3 --repeats 2 --interval 2 --size 32"
    )
    rest_of_loop.main(["--device", "cpu", *options.split(), "--out", str(path)])
    rows = read(path, rest_of_loop.Row)
    assert {(row.scheduler, row.variant, row.part) for row in rows} == {
        (scheduler, variant, part)
        for scheduler in ("DDIMScheduler", "HeunDiscreteScheduler")
        for variant in ("original", "stepcache")
        for part in rest_of_loop.PARTS
    }
    for scheduler, steps in (("DDIMScheduler", 3), ("HeunDiscreteScheduler", 5)):
        for variant in ("original", "stepcache"):
            own = {row.part: row for row in rows if (row.scheduler, row.variant) == (scheduler, variant)}
            calls = {part: row.calls for part, row in own.items()}
            # Two prompts are encoded, the negative one too; the VAE is a convolution and the decoder.
            assert calls == {"text encoder": 2, "U-Net": steps, "scheduler": steps, "VAE": 2, "rest": 1, "whole": 1}
            assert all(0 < row.seconds_p20 <= row.seconds <= row.seconds_p80 for row in own.values())
            assert own["whole"].share == 1
            # Medians of two repeats are their means, so shares add up.
            assert sum(row.share for part, row in own.items() if part != "whole") == pytest.approx(1, abs=1e-3)
            assert max(own, key=lambda part: own[part].share * (part != "whole")) == "U-Net"
    assert HeunDiscreteScheduler.step is step
    assert capsys.readouterr().out.count("text encoder") == 2


def test_what_is_measured_where():
    assert list(rest_of_loop.variants(3, 0, "cpu", compile=False)) == ["original", "stepcache"]
    assert rest_of_loop.variants(3, 0, "cpu", compile=True)["stepcache, compiled, vae=True"] == {
        "interval": 3,
        "branch": 0,
        "compile": True,
        "vae": True,
    }
    on_a_gpu = rest_of_loop.variants(5, 1, "cuda", compile=False)
    assert on_a_gpu["stepcache"] == on_a_gpu[rest_of_loop.WAITING] == {"interval": 5, "branch": 1}
    assert on_a_gpu["stepcache, vae=True"]["vae"] is True


def test_steps_that_wait_are_those_without_the_table(monkeypatch):
    pipe = rest_of_loop.load(rest_of_loop.DEMO, "cpu", torch.float32, "DDIMScheduler")
    call = {"prompt": "tiger face", "height": 32, "width": 32, "num_inference_steps": 1}
    known, seen = dict(timesteps.ON_HOST), []
    stock = type(pipe.scheduler).scale_model_input
    monkeypatch.setattr(
        type(pipe.scheduler),
        "scale_model_input",
        lambda *args, **kwargs: seen.append(dict(timesteps.ON_HOST)) or stock(*args, **kwargs),
    )
    clock = rest_of_loop.Clock(torch.device("cpu"))
    for name, table in (("stepcache", known), (rest_of_loop.WAITING, {})):
        rest_of_loop.run_of(pipe, name, clock, call)()
        assert seen.pop() == table
    assert known == timesteps.ON_HOST != {}
    assert not pipe.unet._forward_hooks and not pipe.vae.decoder._forward_pre_hooks


@pytest.mark.gpu
def test_a_small_run_on_a_gpu():
    rows = rest_of_loop.measure(device="cuda", dtype=torch.float16, steps=4, repeats=2, interval=2)
    assert {row.variant for row in rows} == set(rest_of_loop.variants(2, 0, "cuda", compile=False))
    assert all(row.seconds > 0 for row in rows)
