"""Features taken by hand, from the family's own full forward."""

from contextlib import contextmanager

from stepcache.forwards import family_of


@contextmanager
def features_by_hand(unet, branch):
    """Lists of the features and outputs of the U-Net's calls within the block."""
    family = family_of(unet)
    cut = family.layout(unet).cut(branch)
    features, outputs = [], []

    def forward(*args, **kwargs):
        call = family.bind(*args, **kwargs)
        output, feature = family.full(unet, cut, **call.inputs)
        features.append(feature)
        outputs.append(output)
        return family.wrap(output, call.return_dict)

    unet.forward = forward
    try:
        yield features, outputs
    finally:
        del unet.forward
