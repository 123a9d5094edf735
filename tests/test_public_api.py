import ast
import inspect
import pickle
import subprocess
import sys
from importlib.util import find_spec

import pytest

import stepcache

LIGHT = """
import sys, stepcache, stepcache.cli
from stepcache import *
for room in stepcache._ROOMS:
    getattr(stepcache, room)
assert "torch" in sys.modules
heavy = [m for m in sys.modules if m.split(".")[0] in ("triton", "diffusers", "transformers")
         or m.startswith(("torch._dynamo", "torch._inductor"))]
assert not heavy, heavy
"""


def test_import_is_light():
    """Not `import stepcache` alone, which imports next to nothing, but with all names and rooms in use."""
    subprocess.run([sys.executable, "-c", LIGHT], check=True)


def in_a_process(*lines):
    result = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr


def test_a_name_is_imported_when_it_is_used():
    in_a_process(
        "import sys, stepcache, stepcache.cli",
        "assert not {'torch', 'numpy'} & set(sys.modules)",
        "assert issubclass(stepcache.errors.InvalidSetting, stepcache.StepCacheError)",
        "assert stepcache.Schedule.uniform(3) and 'torch' not in sys.modules",
        "assert stepcache.accelerate is stepcache.api.accelerate and 'torch' in sys.modules",
        "assert vars(stepcache)['accelerate'] is stepcache.accelerate",
    )


def test_modules_are_there_after_import_stepcache_alone():
    in_a_process("import stepcache", "stepcache.plans.plan.Plan, stepcache.run.record.RunRecord")
    assert [name for name in stepcache._ROOMS if not inspect.ismodule(getattr(stepcache, name))] == []


def test_star_gives_all_public_names():
    names = {}
    exec("from stepcache import *", names)
    assert set(stepcache.__all__) <= set(names) & set(dir(stepcache))


def test_other_names_are_refused():
    with pytest.raises(AttributeError, match=r"^module 'stepcache' has no attribute 'acelerate'$"):
        stepcache.acelerate  # noqa: B018
    assert not hasattr(stepcache, "__wrapped__")  # doctest and inspect ask


def test_type_checkers_see_the_same_names():
    """In the branch for them, each name comes from the module that it is taken from when it is used."""
    (seen,) = [node for node in ast.parse(inspect.getsource(stepcache)).body if isinstance(node, ast.If)]
    typed = {alias.name: node.module for node in seen.body for alias in node.names}
    assert typed == stepcache._MODULES and {*typed, "__version__"} == set(stepcache.__all__)


def test_public_objects_can_be_pickled():
    schedule = stepcache.Schedule.uniform(3)
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    in_a_process(
        "import pickle",
        f"assert type(pickle.loads({pickle.dumps(schedule)!r})).__name__ == 'Schedule'",
        "import stepcache",
        f"assert pickle.loads({pickle.dumps(stepcache.accelerate)!r}) is stepcache.accelerate",
    )


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
