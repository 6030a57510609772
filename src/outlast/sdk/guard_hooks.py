"""The few patches: places that everything random, and most that reaches the outside, comes through.

They notice what watching calls does not: a forbidden function that C code calls (`uuid4` as a default factory of
pydantic's), a connection opened deep inside a library. Outside live turns each costs one look into a dict.

| patched | notices |
|---|---|
| `os.urandom`, also as `random` has it | uuid4, secrets, SystemRandom |
| the class of the generator behind `random`'s functions | randint, choice, shuffle, ..., also imported by name |
| partials of forbidden functions, in place | `utcnow = partial(datetime.now, UTC)`, also as a default factory |
| `Thread.start`, `Popen.__init__`, `socket.connect` | threads and pools, processes, requests, httpx, urllib |

Refused: an audit hook, which would see more (`open`, `time.sleep`). `id()` is an audited event: any hook makes it
0.2-0.3 us slower in the whole process, and a hook cannot be removed.
"""

from __future__ import annotations

import os
import sys
from _thread import get_ident
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from outlast.sdk.guard_reach import Reach
from outlast.sdk.guard_rules import CONNECTED, DRAWN, SPAWNED, THREADED, Rule, forbidden
from outlast.sdk.guard_turn import blame, live

_patched: set[str] = set()


def patch_loaded_modules() -> None:
    """Patch what is loaded and not patched yet. Modules that are loaded later are patched by a later call."""
    for name, patch in _PATCHES.items():
        if name not in _patched and name in sys.modules:
            _patched.add(name)
            patch(sys.modules[name])


class _Source:
    """`os.urandom`. A bound method, because a function would change its meaning as an attribute of a class."""

    __slots__ = ("_urandom",)

    def __init__(self, urandom: Callable[[int], bytes]) -> None:
        self._urandom = urandom

    def urandom(self, size: int, /) -> bytes:
        """Return a bytes object containing random bytes suitable for cryptographic use."""
        if live and get_ident() in live:
            _blame_caller(DRAWN)
        return self._urandom(size)


def _patch_os(module: Any) -> None:
    urandom = _Source(module.urandom).urandom
    forbidden.add(urandom, DRAWN)
    module.urandom = urandom


def _patch_random(module: Any) -> None:
    if hasattr(module, "_urandom"):
        module._urandom = os.urandom

    class Random(module.Random):  # type: ignore[misc]
        """The generator that the functions of `random` share."""

        def random(self) -> float:
            if live and get_ident() in live:
                _blame_caller(DRAWN)
            return _random(self)

        def getrandbits(self, k: int, /) -> int:
            if live and get_ident() in live:
                _blame_caller(DRAWN)
            return _getrandbits(self, k)

        def __reduce__(self) -> Any:
            return module.Random, (), self.getstate()

    _random: Callable[[Any], float] = module.Random.random
    _getrandbits: Callable[[Any, int], int] = module.Random.getrandbits
    module._inst.__class__ = Random


class _Stopped:
    """A forbidden function inside a partial; C code calls a partial's function where nobody can watch it."""

    __slots__ = ("_original", "_rule")

    def __init__(self, original: Callable[..., object], rule: Rule) -> None:
        self._original = original
        self._rule = rule

    def __call__(self, *args: object, **kwargs: object) -> object:
        if live and get_ident() in live:
            blame(self._rule, sys._getframe(1))  # pyright: ignore[reportPrivateUsage]
        return self._original(*args, **kwargs)

    def __getattr__(self, name: str) -> object:
        return getattr(self._original, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return _same, (self._original,)


def _same(value: object) -> object:
    return value


def patch_partials(reach: Reach) -> None:
    for found, rule in reach.partials:
        original = found.func
        if not isinstance(original, _Stopped) and type(found) is partial:
            stopped = _Stopped(original, rule)
            forbidden.add(stopped, rule)
            cast(Any, found).__setstate__((stopped, found.args, found.keywords, found.__dict__ or None))


def _patch_method(owner: Any, name: str, rule: Rule, *, deep: bool) -> None:
    original: Callable[..., Any] = getattr(owner, name)

    def guarded(*args: Any, **kwargs: Any) -> Any:
        if live and get_ident() in live:
            _blame_caller(rule, deep=deep)
        return original(*args, **kwargs)

    for attribute in ("__module__", "__name__", "__qualname__", "__doc__"):
        setattr(guarded, attribute, getattr(original, attribute, None))
    guarded.__wrapped__ = original  # type: ignore[attr-defined]
    forbidden.add(guarded, rule)
    setattr(owner, name, guarded)


def _blame_caller(rule: Rule, *, deep: bool = False) -> None:
    """The hook that calls this was called by whoever called what is forbidden."""
    caller = frame = sys._getframe(2)  # pyright: ignore[reportPrivateUsage]
    # The outermost function on the way that has a rule of its own is what the user's code named (uuid4, randint).
    while caller.f_back is not None and caller.f_globals.get("__name__") in _PASSING_ON:
        known = forbidden.by_code.get(id(caller.f_code))
        if known is not None:
            rule = forbidden.named(known, caller.f_locals.get("self"))
        caller = caller.f_back
    blame(rule, frame, deep=deep)


_PASSING_ON = frozenset({"random", "uuid", "secrets", "subprocess", "threading", "socket"})

_PATCHES: dict[str, Callable[[Any], None]] = {
    "os": _patch_os,  # first: `random` has a copy
    "random": _patch_random,
    "threading": lambda module: _patch_method(module.Thread, "start", THREADED, deep=False),
    "subprocess": lambda module: _patch_method(module.Popen, "__init__", SPAWNED, deep=True),
    "socket": lambda module: _patch_method(module.socket, "connect", CONNECTED, deep=True),
}
