import inspect
import subprocess
import sys
from importlib.util import find_spec

import stepcache

LIGHT = """
import sys, stepcache, stepcache.cli
heavy = [m for m in sys.modules if m.split(".")[0] in ("triton", "diffusers", "transformers")
         or m.startswith(("torch._dynamo", "torch._inductor"))]
assert not heavy, heavy
"""


def test_import_is_light():
    subprocess.run([sys.executable, "-c", LIGHT], check=True)


def test_kernels_are_installed_under_the_one_name():
    import stepcache.kernels

    assert stepcache.kernels.__file__.endswith("csrc_triton/__init__.py")


def test_all_names_are_there_and_documented():
    for name in stepcache.__all__:
        assert getattr(stepcache, name) is not None
        if name != "__version__":
            assert getattr(stepcache, name).__doc__, name


def test_no_module_takes_a_public_name():
    """`import stepcache.warmup` somewhere would put the module in the place of the function, for everybody."""
    assert [name for name in stepcache.__all__ if find_spec(f"stepcache.{name}") is not None] == []


def test_errors_have_one_base():
    from stepcache import errors

    classes = [c for c in vars(errors).values() if inspect.isclass(c)]
    assert len(classes) > 5
    assert all(issubclass(c, stepcache.StepCacheError) for c in classes)
