"""MACs counted once a process: counting takes seconds, and tests ask for the same U-Net again and again."""

from contextlib import contextmanager

import pytest

from stepcache.forwards.macs import branch_macs

_KNOWN = {}


def _branch_macs(unet, *args):
    key = repr((unet.config, args))
    if key not in _KNOWN:
        _KNOWN[key] = list(branch_macs(unet, *args))
    return _KNOWN[key]


@contextmanager
def macs_counted_once(module):
    """Within the block, `module.branch_macs` remembers its results."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "branch_macs", _branch_macs)
        yield
