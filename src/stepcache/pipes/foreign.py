"""Code on a model that is not diffusers' or torch's own, and the state outside of the model that it reads.

Adapters and controllers (LyCORIS, PuLID, StoryDiffusion, Prompt-to-Prompt, MasaCtrl) replace the forward of a layer,
hook it, or give an attention another processor. Such code may read attributes of objects beside the model, variables of
closures, and globals. A captured graph sees none of them change, and the code may count on being called in each step.
"""

from __future__ import annotations

import dis
import functools
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from .seat import ORIGINAL

_KNOWN = {"accelerate", "diffusers", "numpy", "peft", "stepcache", "torch", "torchao", "transformers", "xformers"}
"""Packages whose code keeps no such state, besides Python's own."""

_LIMIT = 1000
"""How many places are watched at most, and how long a watched container may be: watching copies it."""

_WORDS = (bool, int, float, complex, str, bytes)
_PLAIN = (bool, int, float, complex, str, bytes, set)
"""Values that are compared by value. Others are by identity: comparing tensors would make the host wait."""


def foreign_code(modules: Iterable[nn.Module]) -> list[Any]:
    """The foreign functions, methods and processors that run in these modules' forwards."""
    found: list[Any] = []
    for module in modules:
        values = vars(module)  # getattr takes a microsecond to find that a module lacks an attribute
        if "forward" in values:
            forward = getattr(values["forward"], ORIGINAL, values["forward"])
            if getattr(forward, "__func__", None) is not type(module).forward:
                found.append(forward)
        elif not is_known(type(module).__module__):
            found.append(type(module).forward)
        if values["_forward_hooks"] or values["_forward_pre_hooks"]:
            found += (*values["_forward_hooks"].values(), *values["_forward_pre_hooks"].values())
        processor = values.get("processor") or values["_modules"].get("processor")
        if processor is not None:
            found.append(processor)
    return [code for code in found if not is_known(_module_of(code))]


class State:
    """What `code` reads outside of the model, as far as it can be found: its places, and their values at a time.

    Watched are the attributes of objects and classes, entries of dicts, lists and sets, variables of closures, and
    globals that the code names, all the way through objects and functions that are foreign too. inside: the model's
    modules, of which only those are watched that the code refers to, without what they hold.
    """

    def __init__(self, code: Iterable[Any], inside: Iterable[nn.Module] = ()) -> None:
        self._containers: list[Any] = []
        self._objects: list[dict[str, Any]] = []  # their attributes
        self._loaded: set[str] = set()  # names of attributes that the code reads
        self._cells: list[types.CellType] = []
        self._named: list[tuple[Mapping[str, Any], tuple[str, ...]]] = []
        self._modules: list[nn.Module] = []  # of the model, on which foreign code may keep something
        self._inside = {id(module) for module in inside}
        self._seen: set[int] = set()
        self._kept_alive: list[Any] = []  # their ids must not be given to others
        self._todo = list(code)
        while self._todo:  # no recursion: users' objects may be linked a thousand times over
            self._look_at(self._todo.pop())

    def values(self) -> list[Any]:
        """A shallow copy of what is there now."""
        return [
            *(container.copy() for container in self._containers),
            *map(self._attributes, self._objects),
            *(self._attributes(vars(module)) for module in self._modules),
            *map(_contents, self._cells),
            *([names.get(name) for name in wanted] for names, wanted in self._named),
        ]

    def holds(self, before: list[Any]) -> bool:
        """Whether everything is as in `before`."""
        return _equal(self.values(), before)

    def settings(self) -> list[Any]:
        """Those of the values that are plain: numbers and words."""
        return [_settings(value) for value in self.values()]

    def _attributes(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """An object's attributes, without those that stepcache replaces during runs, and without tensors that the code
        stores there and never reads: attention maps, for whoever draws them (IP-Adapter's processors keep some).
        """
        return {
            name: value
            for name, value in values.items()
            if not hasattr(value, ORIGINAL)
            and (name in self._loaded or not (value is None or isinstance(value, Tensor)))
        }

    def _visit(self, item: Any) -> None:
        self._todo.append(item)

    def _look_at(self, item: Any) -> None:
        places = len(self._containers) + len(self._objects) + len(self._cells) + len(self._named)
        if item is None or id(item) in self._seen or places > _LIMIT:
            return
        self._seen.add(id(item))
        self._kept_alive.append(item)
        if id(item) in self._inside:
            self._modules.append(item)
            self._visit_class(type(item))
        elif isinstance(item, types.MethodType):
            self._visit(item.__self__)
            self._visit(item.__func__)
        elif isinstance(item, types.FunctionType):
            self._visit_function(item)
        elif isinstance(item, functools.partial):
            for part in (item.func, *item.args, *item.keywords.values()):
                self._visit(part)
        elif isinstance(item, (dict, list, set, tuple)):
            self._visit_container(item)
        elif isinstance(item, type):
            self._visit_class(item)
        elif not isinstance(item, (Tensor, types.ModuleType)) and not is_known(type(item).__module__):
            self._visit_class(type(item))
            self._visit_object(getattr(item, "__dict__", {}))
        elif isinstance(item, nn.Module):
            self._visit_object(vars(item))

    def _visit_function(self, function: types.FunctionType) -> None:
        if is_known(function.__module__):
            return
        names = _names_in(function.__code__)
        self._loaded |= _loaded_in(function.__code__)
        for cell in function.__closure__ or ():
            self._cells.append(cell)
            self._visit(_contents(cell))
        for value in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self._visit(value)
        self._watch(function.__globals__, names)
        for name in names & function.__globals__.keys():
            value = function.__globals__[name]
            if isinstance(value, types.ModuleType) and not is_known(value.__name__):
                self._watch(vars(value), names)
            self._visit(value)

    def _visit_class(self, cls: type) -> None:
        if is_known(cls.__module__):
            return
        values = {name: value for name, value in vars(cls).items() if not name.startswith("__")}
        self._watch(vars(cls), {name for name, value in values.items() if not isinstance(value, types.FunctionType)})
        for value in (*values.values(), vars(cls).get("__call__"), *cls.__bases__):
            self._visit(value)

    def _visit_object(self, values: dict[str, Any]) -> None:
        self._objects.append(values)
        for value in list(values.values()):
            self._visit(value)

    def _visit_container(self, container: Any) -> None:
        if len(container) > _LIMIT:
            return
        if not isinstance(container, tuple) and hasattr(container, "copy"):
            self._containers.append(container)
        for value in list(container.values() if isinstance(container, dict) else container):
            self._visit(value)

    def _watch(self, names: Mapping[str, Any], wanted: Iterable[str]) -> None:
        there = tuple(sorted(name for name in wanted if name in names))
        if there:
            self._named.append((names, there))


def _equal(now: Any, before: Any) -> bool:
    if now is before:
        return True
    if type(now) is not type(before):
        return False
    if isinstance(now, (list, tuple)):
        return len(now) == len(before) and all(map(_equal, now, before))
    if isinstance(now, dict):
        return now.keys() == before.keys() and all(_equal(value, before[name]) for name, value in now.items())
    return isinstance(now, _PLAIN) and bool(now == before)


def _settings(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: item for name, item in value.items() if isinstance(item, _WORDS)}
    if isinstance(value, (list, tuple)):
        return [item for item in value if isinstance(item, _WORDS)]
    return value if isinstance(value, _WORDS) else None


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty
        return None


def _names_in(code: types.CodeType) -> set[str]:
    """The names of globals and attributes in the code, with that of functions inside of it."""
    inner = (const for const in code.co_consts if isinstance(const, types.CodeType))
    return set(code.co_names).union(*map(_names_in, inner))


def _loaded_in(code: types.CodeType) -> set[str]:
    """The names of attributes that the code reads, with those of functions inside of it."""
    inner = (const for const in code.co_consts if isinstance(const, types.CodeType))
    reads = (step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_ATTR", "LOAD_METHOD"))
    # getattr(object, "name") reads by a string.
    strings = (const for const in code.co_consts if isinstance(const, str) and const.isidentifier())
    return {*reads, *strings}.union(*map(_loaded_in, inner))


def _module_of(code: Callable[..., Any]) -> str:
    while isinstance(code, functools.partial):
        code = code.func
    return getattr(code, "__module__", None) or type(code).__module__


@functools.lru_cache(maxsize=1024)
def is_known(module: str | None) -> bool:
    """Whether a module of this name is of Python or a package whose code keeps no state beside its objects."""
    root = (module or "").partition(".")[0]
    return root in _KNOWN or (root in sys.stdlib_module_names and root != "__main__")
