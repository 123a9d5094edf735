import pytest
from support.modular import modular_pipe
from support.small import loop_pipe, tiny_pipe

from stepcache.pipes.modular import blocks_of
from stepcache.run.bars import hidden_bars


def configs(pipe):
    owners = [pipe] if hasattr(pipe, "unet") and not hasattr(pipe, "_blocks") else list(blocks_of(pipe))
    return [vars(owner).get("_progress_bar_config") for owner in owners]


@pytest.mark.parametrize("make", [tiny_pipe, modular_pipe, lambda: loop_pipe("least")], ids=["pipe", "modular", "loop"])
def test_bars_are_as_before(make):
    pipe = make()
    before = configs(pipe)
    with pytest.raises(KeyError), hidden_bars(pipe):
        raise KeyError
    assert configs(pipe) == before


def test_hidden_inside(capsys):
    pipe = tiny_pipe()
    pipe.set_progress_bar_config(desc="loop")
    with hidden_bars(pipe):
        list(pipe.progress_bar(range(2)))
    assert capsys.readouterr().err == ""
    list(pipe.progress_bar(range(2)))
    assert "loop" in capsys.readouterr().err


def test_a_modular_pipe_has_them_on_the_blocks_of_its_loops():
    pipe = modular_pipe()
    (loop,) = [block for block in blocks_of(pipe) if type(block).__name__ == "StableDiffusionXLDenoiseStep"]
    loop.set_progress_bar_config(desc="loop")
    with hidden_bars(pipe):
        assert loop.progress_bar(total=2).disable
    assert configs(pipe).count({"desc": "loop"}) == 1
