from types import SimpleNamespace

from stepcache.images.progress import image_bar

PIPE = SimpleNamespace(scheduler=SimpleNamespace(timesteps=[3, 2, 1]))


def test_it_counts_images_and_moves_at_each_step(capsys):
    with image_bar(4) as bar:
        each_step = bar.begin("first", PIPE, images=3)
        for done in (1, 2, 3, 3):  # more steps than timesteps do not count
            each_step()
            assert round(bar._bar.n, 6) == done
        bar.begin("second", PIPE)  # its callback is never called
    assert "4/4 images" in capsys.readouterr().err


def test_a_run_that_stops_early_is_whole(capsys):
    with image_bar(9) as bar:
        bar.begin("only", PIPE, images=2)
        bar.stop()
    assert "2/2 images" in capsys.readouterr().err


def test_one_that_is_interrupted_says_where_it_was(capsys):
    with image_bar(9) as bar:
        bar.begin("first", PIPE, images=2)
        bar.begin("second", PIPE)()
    last = capsys.readouterr().err.splitlines()[-1]
    assert " 26% 2/9 images [" in last and last.endswith("] second")
