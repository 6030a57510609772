"""Watching calls: `sys.monitoring` where Python has it (3.12 and later), a profile hook where it does not.

*Monitoring.* Local CALL events on the user's code objects show the real callee, whatever it is called by, and may
raise in its place. The events are set on what a walk from the workflow reaches, and during turns on every function of
the user's that watched code is seen to call. Elsewhere nothing is slowed down. Tools numbered 0 to 2 belong to
debuggers, coverage and profilers and are left to them.

*The profile hook* shows every call of the thread and doubles the cost of a turn. It is set only during live turns of
workflows in which the scan found something that the patches (guard_hooks) would not notice. A profile function that
is there already is called as before; a profiler written in C (cProfile) cannot be called, and is not replaced.
"""

from __future__ import annotations

import sys
from _thread import get_ident
from collections.abc import Callable
from functools import partial
from importlib import import_module
from types import BuiltinFunctionType, CodeType, FrameType, FunctionType, MethodDescriptorType, MethodType, ModuleType
from typing import Any, TypeAlias, assert_never, cast
from weakref import WeakSet

from outlast.sdk.guard_fields import has_defaults, initialisers, keywords_of, left_out, note_fields
from outlast.sdk.guard_reach import Reach
from outlast.sdk.guard_rules import Rule, When, forbidden
from outlast.sdk.guard_sites import Origin, origin_of, origin_of_module, origins
from outlast.sdk.guard_turn import blame, live

ProfileFunction: TypeAlias = Callable[[FrameType, str, object], object]

_TOOLS = (3, 4, 5)
"""Free ones first; 5 is kept for optimisers, of which there are none yet."""
_TYPES_LIMIT = 10_000
"""Classes remembered; a program that makes classes while it runs must not fill the memory."""

_LOADABLE = frozenset({"datetime", "time", "random", "uuid", "secrets"})

_tool: int | None = None
_monitoring: Any = getattr(sys, "monitoring", None)
_local_events: Any = getattr(_monitoring, "get_local_events", None)
_types: dict[int, tuple[type, Rule | None]] = {}
"""Classes that were called, by id; they are kept, so that no id is used again."""
_previous: dict[int, Callable[..., object] | None] = {}
"""Profile functions that were there before, of the threads that are being profiled."""
_own: WeakSet[Any] = WeakSet()
"""Random generators that were found to belong to one run."""
_UNKNOWN = object()


# --- monitoring -------------------------------------------------------------------------------------------------


def is_monitoring() -> bool:
    return _tool is not None


def start_monitoring() -> bool:
    """Take a tool id. False if this Python has no monitoring, or every id is taken."""
    global _tool
    if _monitoring is None or _tool is not None:
        return _tool is not None
    for tool in _TOOLS:
        try:
            _monitoring.use_tool_id(tool, "outlast")
        except ValueError:
            continue
        _tool = tool
        _monitoring.register_callback(tool, _monitoring.events.CALL, _on_call)
        return True
    return False


def watch(reach: Reach) -> None:
    """Set events on all code that the walk has reached."""
    assert _tool is not None
    call = _monitoring.events.CALL
    for place in reach.places:
        if not _local_events(_tool, place.code) & call:
            _monitoring.set_local_events(_tool, place.code, call)


def _on_call(code: CodeType, offset: int, callee: object, arg0: object) -> None:
    # Paid for every call in watched code: the commonest kinds come first.
    if not live or get_ident() not in live:
        return
    kind = type(callee)
    owner: object = None
    if kind is FunctionType:
        rule = forbidden.by_object.get(callee)
        if rule is None:
            called = cast(FunctionType, callee).__code__
            if origins.get(called.co_filename) is not Origin.LIBRARY and not _local_events(_tool, called):
                _meet_function(cast(FunctionType, callee))
            return
        owner = arg0
    elif kind is MethodDescriptorType:
        rule, owner = forbidden.by_object.get(callee), arg0
    elif kind is BuiltinFunctionType:
        rule = forbidden.by_object.get(callee)
        if rule is None:
            if type(cast(Any, callee).__self__) is ModuleType:
                return
            rule = forbidden.find(callee)
    else:
        callee = _unwrapped(callee)
        rule = _look_closer(callee) or _rule_of_construction(callee, code, offset)
    if rule is not None:
        caller = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
        owner = owner or getattr(callee, "__self__", None)
        if applies(rule, caller, _argument_count(code, offset), arg0, owner):
            blame(forbidden.named(rule, owner), caller)


def _look_closer(callee: object) -> Rule | None:
    if isinstance(callee, type):
        return _rule_of_type(callee)
    rule = forbidden.find(callee)
    if rule is None:
        function = callee.__func__ if isinstance(callee, MethodType) else callee
        if isinstance(function, FunctionType):
            _meet_function(function)
        else:
            _rule_of_type(type(callee))  # an instance with `__call__`: its class is met
    return rule


def _rule_of_construction(callee: object, code: CodeType, offset: int) -> Rule | None:
    if not isinstance(callee, type) or not has_defaults(callee):
        return None
    keywords, count = keywords_of(code, offset), _argument_count(code, offset)
    if keywords is None or count is None:
        return None
    return left_out(callee, keywords, count - len(keywords))


def _rule_of_type(cls: type) -> Rule | None:
    entry = _types.get(id(cls))
    if entry is None:
        if len(_types) >= _TYPES_LIMIT:
            _types.clear()
        entry = _types[id(cls)] = (cls, forbidden.find(cls))
        if origin_of_module(cls.__module__) is Origin.USER:
            _meet(cls)
    return entry[1]


def _meet_function(function: FunctionType) -> None:
    """Watched code is about to call this one: watch it too, if it is the user's."""
    code = function.__code__
    if origin_of(code, function.__globals__) is Origin.USER and not _local_events(_tool, code):
        _meet(function)


def _meet(callee: object) -> None:
    """Reach on from something that the walk at registration could not know of."""
    reach = Reach().visit(callee)
    take_note(reach)
    watch(reach)


# --- the profile hook -------------------------------------------------------------------------------------------


def start_profile() -> None:
    """Watch the calls of this thread until `stop_profile`."""
    previous = sys.getprofile()
    if previous is None:
        _previous[get_ident()] = None
        sys.setprofile(_on_profile)
    elif isinstance(previous, FunctionType | MethodType):
        _previous[get_ident()] = previous
        sys.setprofile(partial(_on_profile_too, previous))


def stop_profile() -> None:
    thread = get_ident()
    if thread in _previous:
        sys.setprofile(cast("ProfileFunction | None", _previous.pop(thread)))


def _on_profile_too(previous: Callable[..., object], frame: FrameType, event: str, arg: object) -> None:
    previous(frame, event, arg)
    _on_profile(frame, event, arg)


def _on_profile(frame: FrameType, event: str, arg: object) -> None:
    if event == "c_call":
        rule = forbidden.find(arg)
        if rule is not None:
            owner = getattr(arg, "__self__", None)
            if applies(rule, frame, _argument_count(frame.f_code, frame.f_lasti), _UNKNOWN, owner):
                blame(forbidden.named(rule, owner), frame)
    elif event == "call":
        rule = forbidden.by_code.get(id(frame.f_code))
        caller = frame.f_back
        if rule is None and id(frame.f_code) in initialisers:
            given = frame.f_locals
            model: object = next(iter(given.values()))
            rule = left_out(type(model), given.get("data", ()), 0)
        if rule is not None and caller is not None:
            values = frame.f_locals
            owner, first = (values.get(name) for name in (*frame.f_code.co_varnames, "", "")[:2])
            count = 1 if rule.when is When.UNSEEDED else _argument_count(caller.f_code, caller.f_lasti)
            if applies(rule, caller, count, first, owner):
                blame(forbidden.named(rule, owner), caller)


# --- both -------------------------------------------------------------------------------------------------------


def take_note(reach: Reach) -> None:
    """Rules are known only for loaded modules: load those of the standard library that the code will import anyway."""
    for name in reach.missing & _LOADABLE:
        import_module(name)
    forbidden.refresh()
    note_fields(reach)


def applies(rule: Rule, caller: FrameType, count: int | None, first: object, owner: object) -> bool:
    """Whether this call is one of those that the rule means. `count` arguments are given, None if nobody knows."""
    match rule.when:
        case When.ALWAYS:
            return True
        case When.NO_ARGUMENT:
            return count == 0
        case When.ONE_ARGUMENT:
            return count == 1
        case When.UNSEEDED:
            return count == 0 or (count == 1 and first is None)
        case When.SHARED:
            return _is_shared(owner, caller)
        case When.ADVICE:
            return False
        case _:
            assert_never(rule.when)


def _argument_count(code: CodeType, offset: int) -> int | None:
    """Arguments of the call instruction at `offset`; None for `f(*args)`."""
    from opcode import opname

    instructions = code.co_code
    if opname[instructions[offset]] not in ("CALL", "CALL_KW", "PRECALL"):
        return None
    return instructions[offset + 1]


def _is_shared(generator: object, caller: FrameType) -> bool:
    """A generator that a module or the caller's class holds is shared by all runs; one made in a run is its own."""
    chance = sys.modules.get("random")
    if chance is None or not isinstance(generator, chance.Random) or generator in _own:
        return False
    holders: list[object] = list(caller.f_globals.values())
    for value in caller.f_globals.values():
        if isinstance(value, ModuleType) and origin_of_module(value.__name__) is Origin.USER:
            holders.extend(vars(value).values())
    for name in caller.f_code.co_varnames[:1]:
        value = caller.f_locals.get(name)
        for base in (value if isinstance(value, type) else type(value)).__mro__:
            holders.extend(vars(base).values())
    if any(holder is generator for holder in holders) or generator is getattr(chance, "_inst", None):
        return True
    _own.add(generator)  # looked for once: a run may draw often
    return False


def _unwrapped(callee: object) -> object:
    while isinstance(callee, partial):
        callee = cast("partial[object]", callee).func
    return callee
