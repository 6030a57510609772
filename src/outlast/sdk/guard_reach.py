"""What workflow code can reach: the code objects of the user's that it may run, and forbidden callables held as data.

The walk starts at a function or class and follows what the code names: globals, attributes of modules, closures,
defaults, annotations, decorators, methods, fields' default factories, what small containers and module-level objects
hold. It goes by names alone (`co_names`), so it reaches rather too much than too little, and it runs no code of the
user's: attributes are read from `__dict__`, never by `getattr`.

It stops at libraries and at activities, which run elsewhere. Other objects of Outlast's (workflows, handlers) are
looked through to the function that they wrap.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property, partial
from itertools import islice
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, cast

from msgspec import Struct

from outlast.sdk.guard_rules import Rule, When, forbidden
from outlast.sdk.guard_sites import Origin, origin_of, origin_of_module

_CONTAINER_ITEMS = 1_000
"""Items looked at in one container: dispatch tables are smaller, data sets are not worth the walk."""
_CONTAINER_DEPTH = 3
_WORDS = re.compile(r"[A-Za-z_]\w*")
_NOTHING = object()


class Place(Struct, frozen=True):
    """A code object of the user's, with what its names mean."""

    code: CodeType
    namespace: Mapping[str, object]
    cells: dict[str, object]
    """Free variables, as far as they have a value by now; one dict for a function and those inside it."""


class Held(Struct, frozen=True):
    """A forbidden callable that is not called by name but held: a default factory, an alias, an entry of a table."""

    rule: Rule
    holder: str
    owner: object
    """The function or class of the user's that leads to it."""
    patched: bool = False


class Reach:
    """One walk. Create, `visit`, read `places` and `held`."""

    def __init__(self) -> None:
        self.places: list[Place] = []
        self.held: list[Held] = []
        self.classes: list[type] = []
        self.partials: list[tuple[partial[object], Rule]] = []
        self.missing: set[str] = set()
        """Modules with rules that the code imports when it runs, and that are not loaded yet."""
        self._seen: dict[int, object] = {}
        self._queue: list[tuple[object, str, int, object]] = []
        self._owner: object = None

    def visit(self, target: object, holder: str = "") -> Reach:
        self._add(target, holder)
        while self._queue:
            value, holder, depth, self._owner = self._queue.pop()
            self._step(value, holder, depth)
        return self

    def _add(self, value: object, holder: str, depth: int = 0) -> None:
        if value is not None and value is not _NOTHING and type(value) not in _PLAIN:
            self._queue.append((value, holder, depth, self._owner))

    def _step(self, value: object, holder: str, depth: int) -> None:
        rule = forbidden.find(value)
        if rule is not None:
            # A class that is merely named (`rng: random.Random`) is no call of it.
            if not isinstance(value, type):
                self.held.append(Held(rule, holder, self._owner))
            return
        if id(value) in self._seen:
            return
        self._seen[id(value)] = value  # kept, so that its id is not used again during the walk
        match value:
            case FunctionType():
                self._function(value)
            case MethodType():
                self._add(value.__func__, holder)
                self._add(value.__self__, holder)
            case type():
                self._class(value)
            case staticmethod() | classmethod():
                self._add(cast(Any, value).__func__, holder)
            case property():
                for accessor in (value.fget, value.fset, value.fdel):
                    self._add(accessor, holder)
            case cached_property():
                self._add(cast(Any, value).func, holder)
            case partial():
                self._partial(cast("partial[object]", value), holder)
            case ModuleType() | BuiltinFunctionType():
                pass  # a module's attributes are followed where they are named
            case CellType():
                self._add(_contents(value), holder, depth)
            case _:
                self._other(value, holder, depth)

    def _partial(self, value: partial[object], holder: str) -> None:
        rule = forbidden.find(value.func)
        if rule is not None and rule.when is When.ALWAYS:
            self.partials.append((value, rule))
            self.held.append(Held(rule, holder, self._owner, patched=True))
        else:
            self._add(value.func, holder)

    def _other(self, value: object, holder: str, depth: int) -> None:
        kind = type(value)
        if kind in _CONTAINERS:
            if depth < _CONTAINER_DEPTH:
                for item in islice(_items(value), _CONTAINER_ITEMS):
                    self._add(item, holder, depth + 1)
            return
        if _is_ours(kind) and attribute_of(value, "kind") == "activity":
            return
        for name in ("__wrapped__", "wrapped", "factory", "default_factory", "func"):
            self._add(attribute_of(value, name), holder)
        if origin_of_module(kind.__module__) is Origin.USER:
            self._add(kind, holder)
            for name, item in list(_namespace(value).items()):
                self._add(item, f"{holder}.{name}", depth + 1 if depth else 1)

    # functions

    def _function(self, function: FunctionType) -> None:
        self._owner = function
        self._add(attribute_of(function, "__wrapped__"), function.__qualname__)
        cells = _cells(function)
        for value in cells.values():
            self._add(value, function.__qualname__)
        if origin_of(function.__code__, function.__globals__) is not Origin.USER:
            return
        self._code(function.__code__, function.__globals__, cells, function.__qualname__)
        for value in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self._add(value, f"a default of {function.__qualname__}")
        self._annotations(function, function.__globals__, function.__qualname__)

    def _code(self, code: CodeType, space: Mapping[str, object], cells: dict[str, object], name: str) -> None:
        self.places.append(Place(code, space, cells))
        for nested in code.co_consts:
            if isinstance(nested, CodeType):
                self._code(nested, space, cells, name)
        names = code.co_names
        for word in names:
            value = space.get(word, _NOTHING)
            if isinstance(value, ModuleType):
                self._module(value, names)
            elif value is not _NOTHING:
                self._add(value, word)
            else:
                self._local_import(word, names, space)

    def _module(self, module: ModuleType, names: Iterable[str]) -> None:
        """Follow what is named of a module of the user's, through submodules."""
        if origin_of_module(module.__name__) is not Origin.USER and not hasattr(module, "__path__"):
            return
        queue, seen = [module], {module.__name__}
        while queue:
            current = queue.pop()
            for word in names:
                value = vars(current).get(word, _NOTHING)
                if isinstance(value, ModuleType):
                    if value.__name__ not in seen and value.__name__.startswith(f"{module.__name__}."):
                        seen.add(value.__name__)
                        queue.append(value)
                elif origin_of_module(current.__name__) is Origin.USER:
                    self._add(value, word)

    def _local_import(self, word: str, names: Iterable[str], space: Mapping[str, object]) -> None:
        """`word` may be a module that is imported inside the function."""
        package = space.get("__package__")
        for name in (word, f"{package}.{word}" if package else word):
            module = sys.modules.get(name)
            if module is not None:
                self._module(module, names)
        if word in forbidden.pending:
            self.missing.add(word)

    def _annotations(self, owner: object, space: Mapping[str, object], name: str) -> None:
        """Types of arguments: what their methods do is called without being named."""
        annotate = attribute_of(owner, "__annotate__") if sys.version_info >= (3, 14) else _NOTHING
        if isinstance(annotate, FunctionType):
            self._add(annotate, name)
            return
        annotations: object = owner.__annotations__ if isinstance(owner, FunctionType) else None
        if annotations is None:
            annotations = _namespace(owner).get("__annotations__")
        for value in cast("dict[str, object]", annotations or {}).values():
            self._type(value, space, name)

    def _type(self, value: object, space: Mapping[str, object], name: str) -> None:
        if isinstance(value, str):
            for word in _WORDS.findall(value):
                self._add(space.get(word, _NOTHING), name)
            return
        self._add(value, name)
        for part in cast("tuple[object, ...]", _namespace(value).get("__args__", ())):
            self._add(part, name)

    # classes

    def _class(self, cls: type) -> None:
        for base in reversed(cls.__mro__):
            if origin_of_module(base.__module__) is not Origin.USER:
                continue
            self._owner = base
            self.classes.append(base)
            for name, value in list(vars(base).items()):
                if name in _SKIPPED:
                    continue
                if name in _FIELD_TABLES:
                    self._fields(value, base.__qualname__)
                else:
                    self._add(value, f"{base.__qualname__}.{name}")
            self._annotations(base, vars(sys.modules[base.__module__]), base.__qualname__)

    def _fields(self, table: object, class_name: str) -> None:
        fields = list(_items(table))
        keys = list(cast("Mapping[str, object]", table)) if isinstance(table, Mapping) else [""] * len(fields)
        for key, field in islice(zip(keys, fields, strict=True), _CONTAINER_ITEMS):
            own_name = attribute_of(field, "name")
            holder = f"{class_name}.{key or (own_name if isinstance(own_name, str) else '')}".rstrip(".")
            for name in ("default_factory", "factory", "default"):
                value = attribute_of(field, name)
                self._add(value, holder)
                self._add(attribute_of(value, "factory"), holder)


_PLAIN = frozenset({int, str, float, bool, bytes, complex, type(None), type(...), type(NotImplemented)})
_CONTAINERS = frozenset({list, tuple, dict, set, frozenset})
_SKIPPED = frozenset({"__dict__", "__weakref__", "__annotations__", "__module__", "__doc__", "__qualname__"})
_FIELD_TABLES = frozenset(
    {"__dataclass_fields__", "__pydantic_fields__", "model_fields", "__attrs_attrs__", "__struct_defaults__"}
)


def _items(value: object) -> Iterator[object]:
    if isinstance(value, Mapping):
        return iter(list(cast("Mapping[object, object]", value).values()))
    if isinstance(value, (list, tuple, set, frozenset)):
        return iter(list(cast("Iterable[object]", value)))
    return iter(())


def _namespace(value: object) -> Mapping[str, object]:
    try:
        found: object = object.__getattribute__(value, "__dict__")
    except (AttributeError, TypeError):
        return {}
    return cast("Mapping[str, object]", found) if isinstance(found, Mapping) else {}


def attribute_of(value: object, name: str) -> object:
    """An attribute without `__getattr__`, properties or anything else that is the user's."""
    found = _namespace(value).get(name, _NOTHING)
    if found is _NOTHING and not isinstance(value, type):
        slot = type(value).__dict__.get(name)
        if type(slot).__name__ in ("member_descriptor", "getset_descriptor"):
            try:
                return cast(Any, slot).__get__(value)
            except (AttributeError, NameError):
                return _NOTHING
    return found


def _contents(cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:
        return _NOTHING  # not assigned yet


def _cells(function: FunctionType) -> dict[str, object]:
    names = function.__code__.co_freevars
    found = {name: _contents(cell) for name, cell in zip(names, function.__closure__ or (), strict=True)}
    return {name: value for name, value in found.items() if value is not _NOTHING}


def _is_ours(kind: type) -> bool:
    return kind.__module__ == "outlast" or kind.__module__.startswith("outlast.")
