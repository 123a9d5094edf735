"""What every family's full and partial must do, in one call per U-Net."""

from __future__ import annotations

import copy

import torch

from stepcache.forwards import family_of
from stepcache.forwards.join import reference_join
from stepcache.forwards.macs import feature_shapes


def stock(unet, inputs):
    with torch.no_grad():
        return unet(**copy.deepcopy(inputs)).sample


def skip_shapes(unet, inputs):
    """The shapes of all skips, from a stock forward."""
    shapes = []
    hooks = [unet.conv_in.register_forward_hook(lambda m, i, o: shapes.append(o.shape))]
    for block in unet.down_blocks:
        hooks.append(block.register_forward_hook(lambda m, i, o: shapes.extend(x.shape for x in o[1])))
    stock(unet, inputs)
    for hook in hooks:
        hook.remove()
    return shapes


def check_all_branches(unet, inputs, join=reference_join, equal=torch.equal, branches=None):
    """Full and partial of every branch (or only of `branches`) against the stock forward.

    Partial must not touch its feature and must run exactly what is not among the deep modules. Features have the shapes
    that macs.py says, and another feature gives another output.
    """
    want = stock(unet, inputs)
    family = family_of(unet)
    layout = family.layout(unet)
    bound = family.bind(**copy.deepcopy(inputs)).inputs
    with torch.no_grad():
        shapes = feature_shapes(unet, bound)  # before there are hooks, with which a family may refuse its U-Net
    assert len(shapes) == len(layout.joins) == len(layout.skips) > 0
    ran = set()
    # With hooks on its layers a ResNet would not run on the ops.
    watched = layers(unet) if join is reference_join else []
    hooks = [m.register_forward_hook(lambda m, *_: ran.add(m)) for m in watched]
    try:
        with torch.no_grad():
            for branch in range(len(shapes)) if branches is None else branches:
                cut, shape = layout.cut(branch), shapes[branch]
                ran.clear()
                output, feature = family.full(unet, cut, join, **bound)
                everything = set(ran)
                assert equal(output, want), f"full, branch {branch}"
                assert tuple(feature.shape) == shape
                kept = feature.clone()
                ran.clear()
                output = family.partial(unet, cut, feature, join, **bound)
                assert equal(output, want), f"partial, branch {branch}"
                assert torch.equal(feature, kept), f"partial of branch {branch} changed the feature"
                deep = {m for root in family.deep_modules(unet, cut) for m in layers(root)}
                assert not deep & ran
                assert everything - ran <= deep
                # Where layers were left out, what they would have given can only be from the feature.
                if not everything - ran:
                    assert not torch.equal(family.partial(unet, cut, feature + 1, join, **bound), want)
    finally:
        for hook in hooks:
            hook.remove()


def layers(module):
    """The innermost modules: all work is theirs, and they are few beside all that may have hooks."""
    return [m for m in module.modules() if next(m.children(), None) is None]


def check_compiles(unet, inputs, branch=0):
    """Full and partial are traced without a graph break, and give the stock output."""
    family = family_of(unet)
    cut, bound = family.layout(unet).cut(branch), family.bind(**copy.deepcopy(inputs)).inputs
    torch._dynamo.reset()
    full = torch.compile(lambda **x: family.full(unet, cut, **x), backend="eager", fullgraph=True)
    partial = torch.compile(lambda f, **x: family.partial(unet, cut, f, **x), backend="eager", fullgraph=True)
    with torch.no_grad():
        want = stock(unet, inputs)
        output, feature = full(**bound)
        assert torch.equal(output, want)
        assert torch.equal(partial(feature, **bound), want)
