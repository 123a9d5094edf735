"""A pipeline and a grid that are measured in seconds: the demo's text encoder and VAE around the smallest U-Net."""

from support.small import tiny_pipe

from stepcache.bench.spec import GridSpec
from stepcache.images.models import Model

SPEC = {
    "sizes": [(64, 64)],
    "reuse": [(3, 0), (2, 1)],
    "variants": ["eager", "deepcache", "stepcache-eager"],
    "modes": ["default"],
    "steps": 4,
    "repeats": 2,
    "backend": "eager",
    "device": "cpu",
}


def tiny_model(**unet: object):
    return Model("tiny", tiny_pipe(unet=unet), "random", ("tiger face", "fox face"))


def spec(**changes: object):
    return GridSpec(**{**SPEC, **changes})
