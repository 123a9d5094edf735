import pytest
from support.small import UNETS, make_unet

from stepcache.errors import BranchOutOfRange, InvalidSetting
from stepcache.forwards import family_of
from stepcache.reuse.cut import Cut, Layout

SD = Layout(down=((2, True), (2, True), (2, True), (2, False)), up=((3, True), (3, True), (3, True), (3, False)))


def test_stable_diffusion_has_12_joins_counted_from_the_output():
    assert len(SD.joins) == 12
    assert SD.cut(0) == Cut(0, block=3, layer=2)
    assert SD.cut(2) == Cut(2, block=3, layer=0)
    assert SD.cut(3) == Cut(3, block=2, layer=2)
    assert SD.cut(11) == Cut(11, block=0, layer=0)
    assert [SD.cut(m).skips for m in range(12)] == list(range(1, 13))


def test_skips_in_order():
    assert SD.skips[:5] == (
        "conv_in", "down_blocks.0.resnets.0", "down_blocks.0.resnets.1", "down_blocks.0.downsamplers.0",
        "down_blocks.1.resnets.0",
    )  # fmt: skip


@pytest.mark.parametrize("name", UNETS)
def test_every_unet_pops_the_skips_it_pushes(name):
    unet = make_unet(name)
    layout = family_of(unet).layout(unet)
    assert len(layout.skips) == len(layout.joins)


def test_k_blocks_have_a_skip_and_a_join_each():
    layout = Layout(down=((4, True), (4, True), (4, False)), up=((4, True), (4, True), (4, False)), block_skips=2)
    assert layout.skips == ("down_blocks.0.resnets.3", "down_blocks.1.resnets.3")
    assert [layout.cut(m) for m in range(2)] == [Cut(0, 2, 0, by_block=True), Cut(1, 1, 0, by_block=True)]
    assert [layout.cut(m).skips for m in range(2)] == [1, 2]
    assert layout.cached(1) == "output of up_blocks.0"
    with pytest.raises(BranchOutOfRange, match="branches 0 to 1"):
        layout.cut(2)


def test_out_of_range_lists_every_branch_and_what_it_caches():
    with pytest.raises(BranchOutOfRange) as error:
        SD.cut(12)
    text = str(error.value)
    assert "branch=12" in text and "0 to 11" in text
    assert "0: output of up_blocks.3, layer 1" in text
    assert "2: output of up_blocks.2" in text
    assert "11: output of the mid block" in text
    with pytest.raises(BranchOutOfRange):
        SD.cut(-1)


@pytest.mark.parametrize("branch", [1.0, "1", True, None])
def test_a_branch_is_an_integer(branch):
    with pytest.raises(InvalidSetting, match=f"got {branch!r}"):
        SD.cut(branch)
