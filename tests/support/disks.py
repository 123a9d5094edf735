"""A disk on which only so much fits."""

import resource
import signal
from contextlib import contextmanager


@contextmanager
def full_disk(nbytes):
    """Files of this process cannot grow beyond `nbytes`: a write gives what a full disk gives, short and then EFBIG."""
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
