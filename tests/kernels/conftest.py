"""Fixtures: the interpreter, one process for the session, and calls with and without it."""

import pytest
from support.kernel_worker import Interpreter


@pytest.fixture(scope="session")
def interpreter():
    worker = Interpreter()
    yield worker
    worker.close()


@pytest.fixture(params=["as it is", "TRITON_INTERPRET=1"])
def anywhere(request):
    """`anywhere(module, function, ...)` calls in this process, or in one in which kernels are interpreted."""
    if request.param == "TRITON_INTERPRET=1":
        return request.getfixturevalue("interpreter")
    import importlib

    return lambda module, function, *args, **kwargs: getattr(importlib.import_module(module), function)(*args, **kwargs)
