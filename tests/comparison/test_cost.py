import pytest
import torch
from support import small

from stepcache.comparison.cost import Cost, calls_seen, count
from stepcache.errors import UnsupportedUNet
from stepcache.forwards.macs import branch_macs, meta_unet


def test_each_prompt_counts_by_its_size():
    """Against the counter itself, of all sizes one by one."""
    unet = small.make_unet("least")
    cost = count(unet, [(8, 8), (8, 16), (8, 8)], [1, 0, 1])
    expected = [list(branch_macs(meta_unet(unet.config), 8, width, branches=[0, 1])) for width in (8, 16, 8)]
    assert cost.full == sum(rows[0].full_macs for rows in expected)
    assert cost.partial == {m: sum(rows[m].partial_macs for rows in expected) for m in (0, 1)}


def test_of_calls_and_of_letters():
    cost = Cost(1000, {0: 100, 1: 300})
    assert cost.of(3) == 3000 and cost.of(2, 4, branch=1) == 3200
    assert cost.in_calls("FPPFPP", 0) == pytest.approx(2.4) and cost.in_calls("FFF") == 3
    assert cost.in_calls("SSPRP", 1) == pytest.approx(2.6)  # stock calls are whole ones, reused guidance has none


def test_a_unet_whose_calls_were_not_seen():
    with pytest.raises(UnsupportedUNet, match="No call of the U-Net was seen"):
        count(small.make_unet("least"), [], [0])


def test_calls_are_seen_and_nothing_is_left_behind():
    pipe = small.tiny_pipe()
    stock = small.generate(pipe, steps=3)
    before = small.state_of(pipe)
    with calls_seen(pipe.unet) as seen:
        assert torch.equal(small.generate(pipe, steps=3), stock)
    height, width = stock.shape[-2:]
    assert seen == [(height, width)] * 3
    with pytest.raises(KeyboardInterrupt), calls_seen(pipe.unet):
        raise KeyboardInterrupt
    assert small.state_of(pipe) == before
    small.generate(pipe, steps=3)
    assert len(seen) == 3


def test_positional_and_named_samples():
    with calls_seen(unet := torch.nn.Bilinear(2, 2, 2)) as seen:
        unet(torch.empty(3, 5, 2), torch.empty(3, 5, 2))
    assert seen == [(5, 2)]
