"""docs/reference.md has every public name, argument, field and error."""

import dataclasses
import inspect

import stepcache
from benchmarks import RESULTS
from benchmarks.pages import reference
from stepcache import errors


def made(name):
    return reference.TABLES[name](RESULTS)


def test_every_public_name_has_a_section():
    listed = {*reference.CALLS, *reference.CLASSES, "StepCacheError", "__version__"}
    assert listed == set(stepcache.__all__)
    text = made("reference_calls") + made("reference_classes")
    assert all(f"### `{name}`\n" in text for name in (*reference.CALLS, *reference.CLASSES))


def test_every_argument_of_accelerate_is_an_item_and_in_the_signature():
    text = made("reference_calls").partition("### `restore`")[0]
    names = list(inspect.signature(stepcache.accelerate).parameters)
    assert [line.split("`")[1] for line in text.splitlines() if line.startswith("- ")] == names[1:]
    assert '    kernels: bool | str = "auto",\n' in text and "    *,\n    schedule" in text
    assert "Further arguments:\n\n- `schedule`: a `Schedule`, instead of `interval`.\n" in text


def test_every_field_of_a_record_is_an_item():
    text = made("reference_classes").partition("### `RunRecord`")[2].partition("###")[0]
    items = [line for line in text.splitlines() if line.startswith("- ")]
    fields = [field.name for field in dataclasses.fields(stepcache.RunRecord)]
    assert [name for item in items for name in item.partition(": ")[0].strip("- `").split("`, `")] == fields
    assert all(f"`{letter}` " in items[0] for letter in "FPSR")


def test_every_error_is_a_line():
    lines = made("reference_errors").splitlines()[2:]
    found = [each.__name__ for each in vars(errors).values() if inspect.isclass(each)]
    assert [line.split("`")[1] for line in lines] == found
    assert "| `NotCompiled` | `StepCacheError`, `RuntimeError` | compiled_only=True, and" in lines[-1]


def test_code_of_a_docstring_stays_code():
    assert "```text\nwith torch.no_grad(), denoising(pipe):\n    for t in" in made("reference_calls")
