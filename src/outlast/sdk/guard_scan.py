"""Reading bytecode: which forbidden calls the user's code spells out.

For each code object that can be reached, chains of loads (`dt`, `.datetime`, `.now`) are resolved to real objects,
through globals, closures, imports inside functions and local aliases. A finding is `certain` if it is a call of a
forbidden callable; not certain if the callable is only mentioned or held, or if nothing is known of an object but
that the name asked of it (`x.now`) is a name of the table. Nothing is refused on a finding: at registration they decide
whether a workflow needs watching call by call, and a linter shows the certain ones.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterator
from types import ClassMethodDescriptorType, CodeType, FunctionType, ModuleType
from typing import Any, cast

from msgspec import Struct

from outlast.sdk.guard_reach import Place, Reach
from outlast.sdk.guard_rules import SUSPICIOUS_NAMES, TELLING_NAMES, Rule, When, forbidden


class Finding(Struct, frozen=True):
    name: str
    """How the documentation of Python calls it; only the last part if `certain` is False and no more is known."""
    file: str
    line: int
    """0 where it is not known (a field of a class without methods, before Python 3.13)."""
    function: str
    certain: bool
    rule: Rule | None = None
    patched: bool = False
    """It will be noticed without watching calls."""


class Scan(Struct, frozen=True):
    findings: tuple[Finding, ...]
    needs_watch: bool
    """Something that was found would be noticed by watching calls only."""


def scan_reach(reach: Reach) -> Scan:
    findings: list[Finding] = []
    for place in reach.places:
        findings.extend(_Reader(place).read())
    for held in reach.held:
        file, line = _where(held.owner)
        findings.append(Finding(held.rule.name, file, line, held.holder, False, held.rule, held.patched))
    unique = tuple(dict.fromkeys(findings))
    return Scan(unique, any(_needs_watch(finding) for finding in unique))


def _where(owner: object) -> tuple[str, int]:
    if isinstance(owner, FunctionType):
        return owner.__code__.co_filename, owner.__code__.co_firstlineno
    if not isinstance(owner, type):
        return "", 0
    file = getattr(sys.modules.get(owner.__module__), "__file__", None) or ""
    methods = [value for value in vars(owner).values() if isinstance(value, FunctionType)]
    lines = [method.__code__.co_firstlineno for method in methods if method.__code__.co_filename == file]
    first: int = vars(owner).get("__firstlineno__", min(lines, default=0))  # the attribute came with 3.13
    return file, first


def _needs_watch(finding: Finding) -> bool:
    rule = finding.rule
    return rule is None or not (rule.when is When.ADVICE or rule.hooked or finding.patched)


_UNKNOWN: Any = type("_Unknown", (), {"__slots__": ()})()
_SILENT = frozenset({"NOP", "RESUME", "PUSH_NULL", "PRECALL", "EXTENDED_ARG", "CACHE", "NOT_TAKEN", "KW_NAMES"})


_IMPORT = dis.opmap["IMPORT_NAME"]
_ATTRIBUTES = ("LOAD_ATTR", "LOAD_METHOD")


class _Reader:
    """Reads one code object. `value` is what the last load put on the stack."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._locals: dict[str, object] = {}
        self._value: object = _UNKNOWN
        self._imported: object = _UNKNOWN
        self._constant: object = None

    def read(self) -> Iterator[Finding]:
        code = self._place.code
        if not self._is_worth_reading(code):
            return
        instructions = [each for each in dis.get_instructions(code) if each.opname != "CACHE"]
        line = code.co_firstlineno
        for index, instruction in enumerate(instructions):
            position = instruction.positions
            if position is not None and position.lineno is not None:
                line = position.lineno
            if instruction.opname in _SILENT:
                continue
            name = self._step(instruction)
            if name is None:
                if instruction.opname == "IMPORT_NAME" and self._value is _UNKNOWN:
                    # Imported only when the function runs, so nobody can tell now what it will call.
                    yield Finding(instruction.argval, code.co_filename, line, code.co_qualname, False)
                if self._constant in SUSPICIOUS_NAMES and "getattr" in code.co_names:
                    yield Finding(str(self._constant), code.co_filename, line, code.co_qualname, False)
                continue
            finding = self._judge(name, line, instructions, index)
            if finding is not None:
                yield finding

    def _is_worth_reading(self, code: CodeType) -> bool:
        """Whether any name here could be part of a forbidden call; most code is left unread for this."""
        if _IMPORT in code.co_code[::2]:
            return True
        space = self._place.namespace
        words = {*code.co_names, *code.co_freevars, *code.co_cellvars}
        if not words.isdisjoint(TELLING_NAMES | {"getattr"}):
            return True
        values = [space.get(word) for word in words]
        values.extend(self._place.cells.get(word) for word in code.co_freevars)
        return any(forbidden.find(value) is not None for value in values)

    def _step(self, instruction: dis.Instruction) -> str | None:
        """Follow one instruction. Returns the name that was loaded, if one was."""
        operation, argument = instruction.opname, instruction.argval
        if operation.startswith("LOAD_FAST"):
            name = str(cast("tuple[str, ...]", argument)[-1] if isinstance(argument, tuple) else argument)
            # A cell that is loaded so (3.13 and later) is passed on to an inner function, where it is read.
            is_cell = name in self._place.code.co_cellvars or name in self._place.code.co_freevars
            self._value = _UNKNOWN if is_cell else self._locals.get(name, _UNKNOWN)
            return name
        match operation:
            case "LOAD_GLOBAL" | "LOAD_NAME":
                self._value = self._global(argument)
            case "LOAD_DEREF" | "LOAD_CLASSDEREF" | "LOAD_FROM_DICT_OR_DEREF":
                self._value = self._locals.get(argument, self._place.cells.get(argument, _UNKNOWN))
            case "LOAD_ATTR" | "LOAD_METHOD":
                self._value = _attribute(self._value, argument)
            case "IMPORT_NAME":
                self._value = self._imported = self._import(argument)
                return None
            case "IMPORT_FROM":
                self._value = _attribute(self._imported, argument)
                return None
            case "STORE_FAST" | "STORE_DEREF" | "STORE_NAME" | "STORE_GLOBAL":
                self._store(argument)
                return None
            case "STORE_FAST_LOAD_FAST":
                self._store(argument[0])
                self._value = self._locals.get(argument[1], _UNKNOWN)
                return cast(str, argument[1])
            case _:
                plain = operation == "LOAD_CONST" and isinstance(argument, str | tuple)
                self._constant = cast(object, argument) if plain else None
                self._value = _UNKNOWN
                return None
        return cast(str, argument)

    def _store(self, name: str) -> None:
        # A name that is assigned twice keeps what is known: a suspicion too many costs time only.
        if self._value is not _UNKNOWN:
            self._locals[name] = self._value
            if name in self._place.code.co_cellvars:
                self._place.cells[name] = self._value  # shared with the functions inside, which are read later
        self._value = _UNKNOWN

    def _global(self, name: str) -> object:
        value = self._place.namespace.get(name, _UNKNOWN)
        if value is _UNKNOWN:
            builtins = sys.modules["builtins"]
            return vars(builtins).get(name, _UNKNOWN)
        return value

    def _import(self, name: str) -> object:
        package = self._place.namespace.get("__package__")
        if name not in sys.modules and package and f"{package}.{name}" in sys.modules:
            return sys.modules[f"{package}.{name}"]
        if self._constant is None:  # `import a.b` binds a; `from a.b import c` names what it wants
            name = name.partition(".")[0]
        return sys.modules.get(name, _UNKNOWN)

    def _judge(self, name: str, line: int, instructions: list[dis.Instruction], index: int) -> Finding | None:
        code, value = self._place.code, self._value
        if value is _UNKNOWN:
            if instructions[index].opname in _ATTRIBUTES and name in SUSPICIOUS_NAMES:
                return Finding(name, code.co_filename, line, code.co_qualname, False)
            return None
        rule = forbidden.find(value)
        if rule is None:
            return None
        called = _is_called(instructions, index)
        if rule.when in (When.NO_ARGUMENT, When.UNSEEDED) and called:
            if not _has_no_argument(instructions, index):
                return None
        elif isinstance(value, type) and not called:
            return None  # the class is named, not called
        certain = called and rule.when is not When.ONE_ARGUMENT
        return Finding(rule.name, code.co_filename, line, code.co_qualname, certain, rule)


def _is_called(instructions: list[dis.Instruction], index: int) -> bool:
    """Whether what is loaded here gets called: then the compiler puts a NULL beneath it, or the object it belongs to.

    The NULL comes before the chain (3.11, 3.12), with a load (all versions) or after the chain (3.13 and later).
    """
    following = instructions[index + 1].opname if index + 1 < len(instructions) else ""
    if following in _ATTRIBUTES:
        return False  # the chain goes on
    if following == "PUSH_NULL" or instructions[index].opname == "LOAD_METHOD":
        return True
    if instructions[index].opname == "LOAD_ATTR" and sys.version_info >= (3, 12) and (instructions[index].arg or 0) & 1:
        return True
    while index and instructions[index].opname in _ATTRIBUTES:
        index -= 1
    if instructions[index].opname == "LOAD_GLOBAL" and (instructions[index].arg or 0) & 1:
        return True
    return index > 0 and instructions[index - 1].opname == "PUSH_NULL" and sys.version_info < (3, 13)


def _has_no_argument(instructions: list[dis.Instruction], index: int) -> bool:
    given = 0
    for following in instructions[index + 1 :]:
        if following.opname in ("CALL", "PRECALL"):
            return following.arg == given
        if following.opname == "LOAD_CONST" and following.argval is None:
            given = 1  # `Random(None)` is as good as `Random()`
            continue
        if following.opname not in _SILENT:
            return False
    return False


def _attribute(value: object, name: str) -> object:
    """`value.name`, where it can be had without running code of the user's."""
    if isinstance(value, ModuleType):
        found = vars(value).get(name, _UNKNOWN)
        return sys.modules.get(f"{value.__name__}.{name}", _UNKNOWN) if found is _UNKNOWN else found
    if isinstance(value, type):
        for base in value.__mro__:
            found = vars(base).get(name, _UNKNOWN)
            if found is not _UNKNOWN:
                if isinstance(found, classmethod | staticmethod | ClassMethodDescriptorType):
                    return cast(Any, found).__get__(None, value)
                return found
        return _UNKNOWN
    chance = sys.modules.get("random")
    if chance is not None and type(value) in (chance.Random, type(chance._inst)):
        return getattr(value, name, _UNKNOWN)
    return _UNKNOWN
