"""Against features that are taken by hand, from each family's own full forward."""

import pytest
import torch
from support.features import features_by_hand
from support.small import UNETS, loop_pipe

from stepcache.errors import BranchOutOfRange
from stepcache.images.features import features_read


@pytest.mark.parametrize("name", [name for name in UNETS if name != "inpaint"])
def test_they_are_those_of_the_full_forward_of_every_branch(name):
    pipe = loop_pipe(name)
    branches = range(pipe.unet.config.layers_per_block if isinstance(pipe.unet.config.layers_per_block, int) else 2)
    read = {branch: [] for branch in branches}
    with features_read(pipe.unet, branches, lambda branch, feature: read[branch].append(feature.clone())):
        latents = pipe(2)
    assert torch.equal(latents, pipe(2))
    for branch in branches:
        with features_by_hand(pipe.unet, branch) as (features, _):
            pipe(2)
        assert len(read[branch]) == len(features) == 2
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(read[branch], features, strict=True))


def test_hooks_are_removed_after_an_error():
    unet, branches = loop_pipe().unet, (0, 99)
    with pytest.raises(BranchOutOfRange), features_read(unet, branches, print):
        pass
    with pytest.raises(ZeroDivisionError), features_read(unet, (0,), print):
        raise ZeroDivisionError
    assert not any(module._forward_pre_hooks for module in unet.modules())
