"""Who has which name: what a worker hosts, and what has been decorated in this process.

A `Registry` is what one worker was given, by name and alias. Two different things under one name would make the
history ambiguous, so that is refused when the worker is made, with both places.

Besides, every decorated object is remembered as long as it lives (`declared`), so that `outlast.run(order)` need not
be told which activities `order` calls (`companions`).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from types import FunctionType, ModuleType
from typing import Any, TypeAlias, cast
from weakref import WeakValueDictionary

from outlast.model.errors import DurableCallError, InvalidArgument, NotRegistered
from outlast.sdk.definition import code_of, effective, has_run_method
from outlast.sdk.durable import ENTRY, Durable, Kind, no_child_workflows
from outlast.sdk.handlers import messages_of
from outlast.sdk.whereabouts import count_as_user_code

AnyDurable: TypeAlias = Durable[..., Any]

SHOWN_NAMES = 10
"""A message that lists more names than these is not read."""


class Registry:
    """The workflows and activities of one worker."""

    def __init__(self, *hosted: object) -> None:
        """Takes decorated functions, workflow classes, modules with such at their top level, and instances with
        activity methods. Raises InvalidArgument for anything else, and for two things under one name; PayloadError if
        a handler takes, or gives, what cannot be recorded.
        """
        self._by_name: dict[Kind, dict[str, AnyDurable]] = {"workflow": {}, "activity": {}}
        for target in hosted:
            for durable in _hosted_by(target):
                self._add(durable)

    def workflow(self, name: str) -> AnyDurable:
        """By name or alias. Raises NotRegistered."""
        return self._find("workflow", name)

    def activity(self, name: str) -> AnyDurable:
        """By name or alias; a method comes bound to its instance. Raises NotRegistered."""
        return self._find("activity", name)

    def workflows(self) -> list[AnyDurable]:
        """Each once."""
        return _each_once(self._by_name["workflow"].values())

    def activities(self) -> list[AnyDurable]:
        """Each once."""
        return _each_once(self._by_name["activity"].values())

    def workflow_names(self) -> list[str]:
        """Aliases included."""
        return list(self._by_name["workflow"])

    def activity_names(self) -> list[str]:
        """Aliases included."""
        return list(self._by_name["activity"])

    def _add(self, durable: AnyDurable) -> None:
        if durable.owner is not None and durable.bound_to is None:
            raise InvalidArgument(
                f"{durable!r} is a method: give the worker an instance of {durable.owner.__qualname__}, on which it "
                "shall run, instead of the method."
            )
        count_as_user_code(code_of(durable.origin.fn).co_filename)
        if durable.handlers is not None:
            durable.handlers.prepare()  # nobody who starts a run has looked at them, and in a run it is too late
        names = self._by_name[durable.kind]
        for name in (durable.name, *durable.aliases):
            other = names.setdefault(name, durable)
            if not other.same_as(durable):
                raise InvalidArgument(
                    f"two different things are called {name!r}: {_described(other)} and {_described(durable)}. A "
                    f'history holds names only. Rename one with @{durable.kind}(name="...", aliases=["{name}"]), or '
                    "give them to different workers."
                )

    def _find(self, kind: Kind, name: str) -> AnyDurable:
        found = self._by_name[kind].get(name)
        if found is None:
            raise NotRegistered(_not_registered(kind, name, self._by_name[kind]))
        return found


def _each_once(durables: Iterable[AnyDurable]) -> list[AnyDurable]:
    return list({id(durable): durable for durable in durables}.values())


def _described(durable: AnyDurable) -> str:
    on = "" if durable.bound_to is None else f" of the {type(durable.bound_to).__name__} at {id(durable.bound_to):#x}"
    also = f" (also called {', '.join(map(repr, durable.aliases))})" if durable.aliases else ""
    return f"{durable.fn.__qualname__}{on} at {durable.where}{also}"


def _not_registered(kind: Kind, name: str, known: Mapping[str, AnyDurable]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if near:
        there = f"Did you mean {' or '.join(map(repr, near))}?"
    elif known:
        more = "" if len(known) <= SHOWN_NAMES else f" and {len(known) - SHOWN_NAMES} more"
        there = f"It hosts {', '.join(map(repr, sorted(known)[:SHOWN_NAMES]))}{more}."
    else:
        there = f"It hosts no {kind} at all."
    return (
        f"no {kind} called {name!r} is registered with this worker. {there} Give it to the worker; if it has been "
        f'renamed, keep the old name: @{kind}(aliases=["{name}"]).'
    )


# --- what a worker may be given ---------------------------------------------------------------------------------------


def _hosted_by(target: object) -> list[AnyDurable]:
    match target:
        case ModuleType():
            found = [durable for durable in map(_decorated, vars(target).values()) if durable is not None]
            if not found:
                raise InvalidArgument(
                    f"the module {target.__name__} has nothing at its top level that is decorated with @activity or "
                    "@workflow, so a worker can host nothing of it."
                )
            return found
        case type() if _decorated(target) is None and _methods(target):
            raise InvalidArgument(
                f"{target.__qualname__} has activities as methods: give the worker an instance, "
                f"{target.__name__}(...), on which they shall run, instead of the class."
            )
        case Durable() | type() | FunctionType():
            return [durable_of(cast(object, target))]
        case _ if methods := list(_bound_methods(target)):
            return methods
        case _:
            raise InvalidArgument(
                f"a worker cannot host {target!r}. It takes functions decorated with @activity or @workflow, workflow "
                "classes, modules that have such, and instances of classes with @activity methods."
            )


def _decorated(value: object) -> AnyDurable | None:
    """What the decorator made of it, if it is a decorated function or class."""
    if _is_a(value, Durable):
        return cast(AnyDurable, value)
    # Not inherited: a subclass of a workflow is a workflow only if it is decorated too.
    entry = vars(cast(type, value)).get(ENTRY) if _is_a(value, type) else None
    return cast("AnyDurable | None", entry)


def _is_a(value: object, cls: type) -> bool:
    """As isinstance, without asking `value.__class__`, which makes lazy proxies in users' modules load what they
    stand for, or fail.
    """
    return issubclass(type(value), cls)


def _methods(cls: type) -> dict[str, object]:
    """Attributes of instances of `cls` that are activities, by name."""
    return {name: value for name, value in effective(cls).items() if _is_activity(value)}


def _is_activity(value: object) -> bool:
    inner = _below(value)
    return isinstance(inner, Durable) and cast(AnyDurable, inner).kind == "activity"


def _below(value: object) -> object:
    """What a staticmethod or classmethod stands around; else the value itself."""
    return cast(Any, value).__func__ if isinstance(value, staticmethod | classmethod) else value


def _bound_methods(instance: object) -> Iterator[AnyDurable]:
    for name, value in _methods(type(instance)).items():
        if isinstance(value, classmethod):
            raise InvalidArgument(
                f"{type(instance).__qualname__}.{name} is a classmethod and an activity, and a history cannot say "
                "which class it is called on. Make it a static method, or a method of the instance."
            )
        durable = cast(AnyDurable, _below(value))
        yield durable if durable.owner is None else durable.bind(instance)


# --- what has been decorated in this process --------------------------------------------------------------------------

_declared: WeakValueDictionary[int, AnyDurable] = WeakValueDictionary()
_by_function: WeakValueDictionary[int, AnyDurable] = WeakValueDictionary()
"""By the id of the function, which lives as long as the Durable does: so no other function can have the id."""


def declare(durable: AnyDurable) -> None:
    """Called by the decorators, once for each object that they make."""
    _declared[id(durable)] = durable
    if durable.cls is None:
        _by_function[id(durable.fn)] = durable


def declared(kind: Kind | None = None) -> list[AnyDurable]:
    """What has been decorated in this process and is still alive, in the order of definition.

    Without methods, which cannot be hosted without their instance.
    """
    return [each for each in list(_declared.values()) if kind in (None, each.kind) and each.owner is None]


def companions(target: AnyDurable) -> list[AnyDurable]:
    """The activities of this process that can be hosted beside the workflow `target`.

    First come those that its own code can name: in its module, in modules that are imported there, in the function
    around it; instances with activity methods too. Then all the others that are declared. Where several in one of
    these two groups share a name, they are left out: nobody can tell which is meant. A later definition of the same
    function counts as the only one (a notebook cell that was run again).
    """
    chosen: dict[str, AnyDurable] = {}
    for group in (_in_reach_of(target), declared("activity")):
        for name, durables in _by_every_name(group).items():
            if len(durables) == 1:
                chosen.setdefault(name, durables[0])
    whole = _each_once(chosen.values())
    return [each for each in whole if all(chosen.get(name) is each for name in (each.name, *each.aliases))]


def _by_every_name(durables: Iterable[AnyDurable]) -> dict[str, list[AnyDurable]]:
    found: dict[str, list[AnyDurable]] = {}
    for durable in durables:
        for name in (durable.name, *durable.aliases):
            others = [other for other in found.get(name, ()) if not _replaces(durable, other)]
            found[name] = [*others, durable]
    return found


def _replaces(later: AnyDurable, earlier: AnyDurable) -> bool:
    if later.same_as(earlier):
        return True
    mine, theirs = later.origin.fn, earlier.origin.fn
    redefined = (mine.__module__, mine.__qualname__) == (theirs.__module__, theirs.__qualname__)
    return redefined and "<locals>" not in mine.__qualname__ and later.bound_to is earlier.bound_to


def _in_reach_of(target: AnyDurable) -> Iterator[AnyDurable]:
    functions = [target.fn]
    if target.cls is not None:
        functions += [value for value in vars(target.cls).values() if isinstance(value, FunctionType)]
        functions += [message.fn for message in target.handlers or ()]
    values: dict[int, object] = {}
    for fn in functions:
        for value in (*fn.__globals__.values(), *_closure(fn)):
            values[id(value)] = value
    for value in list(values.values()):
        for each in list(vars(value).values()) if _is_a(value, ModuleType) else [value]:
            yield from _activities_of(each)


def _activities_of(value: object) -> Iterator[AnyDurable]:
    if _is_a(value, Durable):
        durable = cast(AnyDurable, value)
        if durable.kind == "activity" and (durable.owner is None or durable.bound_to is not None):
            yield durable.origin if durable.owner is None else durable
    elif not _is_a(value, type) and type(value).__module__ != "builtins":
        yield from _bound_methods(value)


def _closure(fn: Any) -> Iterator[object]:
    for cell in fn.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:
            continue  # not bound yet


# --- from what users pass to what was decorated -----------------------------------------------------------------------


def durable_of(target: object) -> AnyDurable:
    """The Durable behind a decorated function or class, or behind the plain function below it.

    Raises InvalidArgument if it is not decorated.
    """
    found = _decorated(target) or (_by_function.get(id(target)) if isinstance(target, FunctionType) else None)
    if found is not None:
        return found
    if isinstance(target, type):
        if has_run_method(target):
            what = (
                f"the class {target.__qualname__} has a method marked with @workflow.run, but is not decorated itself"
            )
            raise InvalidArgument(f"{what}: put @workflow above the class.")
        handlers = ", ".join(message.title for message in messages_of(target))
        hint = f" Its handlers ({handlers}) belong to the workflow that inherits them." if handlers else ""
        raise InvalidArgument(
            f"the class {target.__qualname__} is not a workflow: it is not decorated with @workflow.{hint}"
        )
    if isinstance(target, FunctionType):
        raise InvalidArgument(
            f"the function {target.__qualname__} is neither an activity nor a workflow: put @activity or @workflow "
            "above it."
        )
    raise InvalidArgument(
        f"{target!r} is neither an activity nor a workflow; expected a function or class that is decorated with "
        "@activity or @workflow."
    )


def workflow_of(target: object) -> AnyDurable:
    """The workflow that a user has passed to a client. Raises InvalidArgument if it is none."""
    found = durable_of(target)
    if found.kind == "activity":
        raise InvalidArgument(
            f"{found.name} is an activity, and a client starts workflows. Call it in a workflow, and start that: its "
            "history is what makes the call durable."
        )
    return found


def activity_of(target: object, what: str) -> AnyDurable:
    """The activity that a workflow has passed to `what`. Raises what the caller shall see if it is none."""
    found = durable_of(target)
    if found.kind == "workflow":
        raise no_child_workflows(found)
    if found.owner is not None and found.bound_to is None:
        raise DurableCallError(
            f"{what} was given {found.name}, which is a method: pass it on an instance of "
            f"{found.owner.__qualname__}. The worker runs it on the instance that it was given."
        )
    return found
