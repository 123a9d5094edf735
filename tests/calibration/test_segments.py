"""The table of segments, against runs of each segment, and its masks against all masks."""

import itertools

import pytest
import torch
from support.small import demo_pipe

from stepcache.calibration.grams import Collector
from stepcache.calibration.journal import Journal
from stepcache.calibration.paths import segments_of
from stepcache.calibration.replay import Partial, Replay
from stepcache.calibration.segments import SegmentMeter, Segments
from stepcache.images.make import Request
from stepcache.reuse.predict import Apart, Line

STEPS = 6


@pytest.fixture(scope="module")
def replay():
    pipe = demo_pipe()
    request = Request(("tiger face", "rose"), (3, 4), STEPS, {"guidance_scale": 3.0, "height": 32, "width": 32})
    collector = Collector(pipe, (0, 1))
    collector.run(lambda: request.make(pipe), lambda: True, record=True)
    return Replay(pipe, request, collector.recordings[0])


def counted(replay, monkeypatch):
    runs, errors = [], Replay.errors
    monkeypatch.setattr(Replay, "errors", lambda self, *args: runs.append(args) or errors(self, *args))
    return runs


@pytest.mark.parametrize("reuse", [False, True])
def test_costs_are_those_of_direct_runs(replay, reuse):
    """Exactly at hold; nearly, under dampings that the table does not measure, for the images are not quite linear."""
    table = SegmentMeter([replay], Journal(None, {}), 0, apart=True).table(0, reuse, 3)
    assert set(table.errors) == {(a, b) for a in range(5) for b in (a + 2, a + 3) if b <= STEPS}
    for a, b in table.errors:
        full = (a, max(a - 2, 0)) if a else (0,)
        for mean, difference, close in ((0.0, 0.0, 1e-6), (1.0, -0.25, 0.15)):
            stretch = Partial(full, b, 0, reuse, Apart(mean, difference))
            errors = replay.errors(stretch, STEPS)
            at, image = (errors[step].square().mean(1) for step in (b, STEPS))
            costs = table.costs(a, b, mean, difference)
            if b == STEPS:
                torch.testing.assert_close(costs, image, rtol=close, atol=1e-12)
            else:
                # Growth is known exactly here: every step was measured.
                torch.testing.assert_close(costs, at * table.growth[b], rtol=close, atol=1e-12)
                assert (costs / image).log2().abs().max() < 2


def test_growth_is_that_of_a_held_step(replay):
    table = SegmentMeter([replay], Journal(None, {}), 0, apart=True).table(0, False, 2)
    for b in range(2, STEPS):
        torch.testing.assert_close(
            table.costs(b - 2, b, 0.0, 0.0),
            replay.errors(Partial((b - 2,), b, 0, False, Line()), STEPS)[STEPS].square().mean(1),
            rtol=1e-6,
            atol=1e-12,
        )


def test_each_is_measured_once_and_found_in_the_journal(replay, tmp_path, monkeypatch):
    runs = counted(replay, monkeypatch)
    path = tmp_path / "trials.jsonl"
    with Journal(path, {}) as notes:
        meter = SegmentMeter([replay], notes, 0, apart=True)
        first = meter.table(0, False, 3)
        count = len(runs)
        assert count == 1 + 3 * (STEPS - 2) + 4  # one without a line; then hold and two lines; growth at 2 to 5
        assert meter.table(0, False, 3) is first and len(runs) == count
        meter.table(1, False, 3)
        assert len(runs) == 2 * count - 4  # growth is shared
    lines = path.read_text().splitlines(keepends=True)
    # Cut off in the middle, it goes on.
    path.write_text("".join(lines[:5]))
    runs.clear()
    with Journal(path, {}) as notes:
        again = SegmentMeter([replay], notes, 0, apart=True).table(0, False, 3)
    assert 0 < len(runs) < count
    for segment, errors in first.errors.items():
        assert torch.equal(errors, again.errors[segment])


def test_without_halves_there_is_one_line(replay, monkeypatch):
    runs = counted(replay, monkeypatch)
    table = SegmentMeter([replay], Journal(None, {}), 0, apart=False).table(0, False, 2)
    assert {type(stretch.predictor) for stretch, _ in runs} == {Line}
    assert table.errors[2, 4].shape == (2, 2, 2)
    errors = replay.errors(Partial((2, 0), 4, 0, False, Line(1.0)), 4)[4].square().mean(1)
    torch.testing.assert_close(table.costs(2, 4, 1.0, 0.7), errors * table.growth[4], rtol=1e-6, atol=1e-12)


def made_up(steps=9, images=3, longest=4, seed=0):
    """A table with growth measured at two steps only."""
    draw = torch.Generator().manual_seed(seed)
    errors = {}
    for a, b in itertools.combinations(range(steps + 1), 2):
        if 2 <= b - a <= longest:
            parts = torch.rand(images, 1 if a == 0 else 3, 5, generator=draw, dtype=torch.float64)
            errors[a, b] = torch.einsum("nkv,nlv->nkl", parts, parts)
    growth = {b: torch.rand(images, generator=draw, dtype=torch.float64) + 0.1 for b in (2, steps - 1)}
    growth[steps] = torch.ones(images, dtype=torch.float64)
    return Segments(steps, longest, errors, growth)


@pytest.mark.parametrize("minimax", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_the_mask_is_the_best_there_is(seed, minimax):
    """With one image the weighing changes nothing."""
    table = made_up(images=1, seed=seed)

    def order(places):
        mask = "".join("F" if step in (0, *places) else "P" for step in range(9))
        found = segments_of(mask)
        if any(b - a > 4 for a, b in found):
            return None
        costs = [float(table.costs(a, b, 1.0, -0.25)) for a, b in found]
        return (sorted(costs, reverse=True) if minimax else sum(costs)), mask

    best = min(found for places in itertools.combinations(range(1, 9), 3) if (found := order(places)) is not None)
    assert table.mask(4, 1.0, -0.25, minimax) == best[1]


def test_an_image_counts_by_its_own_total():
    """A difficult image, with a thousand times the errors, does not decide alone."""
    costs = {(0, 2): (1.0, 2000.0), (1, 3): (2.0, 1000.0), (0, 3): (9.0, 9000.0)}
    errors = {at: torch.tensor(each, dtype=torch.float64).view(2, 1, 1) for at, each in costs.items()}
    growth = {2: torch.ones(2, dtype=torch.float64), 3: torch.ones(2, dtype=torch.float64)}
    # Both masks are equally good for one image as for the other: half the error, or twice.
    table = Segments(3, 3, errors, growth)
    assert table.mask(2, 0.0, 0.0) in ("FPF", "FFP")
    errors[0, 2] = torch.tensor([0.4, 2000.0], dtype=torch.float64).view(2, 1, 1)
    assert Segments(3, 3, errors, growth).mask(2, 0.0, 0.0) == "FPF"


def test_an_overflow_is_an_infinite_cost_and_growth_is_interpolated():
    table = made_up()
    assert torch.allclose(table.costs(2, 4, 0.0, 0.0) / table.errors[2, 4][:, 0, 0], (
        table.growth[2] ** (4 / 6) * table.growth[8] ** (2 / 6)
    ))  # fmt: skip
    table.errors[2, 4][0, 1, 1] = torch.inf
    assert torch.isinf(table.costs(2, 4, 1.0, 0.0)[0]) and torch.isinf(table.costs(2, 4, 0.0, 0.0)[0])
    mask = table.mask(4, 1.0, 0.0)
    assert (2, 4) not in segments_of(mask) and mask.count("F") == 4
