"""The determinism guard: workflow code that does what a replay could not repeat is stopped, at the line, by name.

Theory of operation
===================
A run is rebuilt by running its code again, so the code must come to the same decisions from the same events. The
guard watches *live* turns (a replay is compared with the history anyway) and raises DeterminismViolation where the
user's code reads the clock, draws from a random generator, works on files, talks to the network, or starts threads
and processes. The violation also poisons the turn: `end_turn` returns it even if the code swallowed it, and nothing
of the turn is written. After the code is changed the run goes on.

Three ways of noticing, since none is enough:

- *Patches* (guard_hooks): the few places that everything random comes through, and threads, processes, connections.
- *Watching calls* (guard_watch): the real callee of each call in the user's code, whatever it is called by. On 3.12
  and later by `sys.monitoring`, on the code that can be reached from a workflow. On 3.11, and where every tool id is
  taken, by a profile hook, and only in workflows in which something was found that the patches would not notice.
- *Reading bytecode* (guard_reach, guard_scan): what can be reached, and what is found there. It chooses what is
  watched, and is the core of a linter. It never refuses anything by itself.

What counts: call sites in the user's code, and in generated code such as the `__init__` of a dataclass. Libraries may
ask for the time (`logging` does), unless they only pass on the user's own call (guard_sites).

Not noticed: on 3.11 a partial that the workflow itself makes of a C function, and default factories of msgspec's (see
guard_fields); C code that calls C code on the user's behalf without passing through a patch (`map(time.time_ns, ...)`),
and reads of `os.environ`: subscripts are no calls, and settings rarely change between replays; a scan reports
`os.getenv`.
"""

from __future__ import annotations

import logging
import sys
from _thread import get_ident
from collections.abc import Callable
from importlib import import_module

from outlast.model.errors import DeterminismViolation
from outlast.sdk import guard_watch
from outlast.sdk.guard_hooks import patch_loaded_modules, patch_partials
from outlast.sdk.guard_reach import Reach
from outlast.sdk.guard_rules import forbidden
from outlast.sdk.guard_scan import Finding, scan_reach
from outlast.sdk.guard_sites import claim
from outlast.sdk.guard_turn import live as _live
from outlast.sdk.guard_turn import unsafe

__all__ = ["Finding", "begin_turn", "end_turn", "install", "prepare", "scan", "unsafe"]

_log = logging.getLogger("outlast.guard")
_installed = False
_modules = sys.modules
_modules_seen = 0
"""How many modules were loaded when the rules were last looked up."""
_any_closely = False
"""Some workflow of this process needs the profile hook."""


def install() -> None:
    """Set up the guard for this process. Idempotent. Code outside of turns is not affected."""
    global _installed
    if _installed:
        return
    _installed = True
    import_module("random")  # it must be there to be patched; the SDK draws from it anyway

    if sys.version_info >= (3, 12) and not guard_watch.start_monitoring():
        _log.warning(
            "no free tool id is left in sys.monitoring, so the determinism guard falls back to sys.setprofile, which "
            "slows turns down. Other tools in this process (debugger, coverage, profilers) hold the ids."
        )
    _catch_up()


def prepare(target: Callable[..., object] | type, name: str) -> bool:
    """Get ready to watch a workflow: its code, and what it reaches. Call it for every workflow that a worker hosts.

    True if its live turns need the profile hook: give that to `begin_turn`.
    """
    global _any_closely
    reach = _reach(target)
    patch_partials(reach)
    if guard_watch.is_monitoring():
        guard_watch.watch(reach)
        return False
    found = scan_reach(reach)
    if found.needs_watch:
        _any_closely = True
        names = ", ".join(sorted({finding.name for finding in found.findings}))
        _log.debug("workflow %s is watched call by call, because of: %s", name, names)
    return found.needs_watch


def scan(target: Callable[..., object] | type) -> list[Finding]:
    """What the code of a workflow spells out that a replay could not repeat. Runs nothing of it."""
    findings = scan_reach(_reach(target)).findings
    # What is in the `__init__` of a dataclass is reported where the class declares it.
    return [finding for finding in findings if finding.file != "<string>"]


def _reach(target: Callable[..., object] | type) -> Reach:
    module = getattr(target, "__module__", None)
    if isinstance(module, str):
        claim(module)
    forbidden.refresh()
    reach = Reach().visit(target, getattr(target, "__qualname__", ""))
    guard_watch.take_note(reach)
    return reach


def begin_turn(live: bool, closely: bool | None = None) -> None:
    """Workflow code is about to run on this thread, up to `end_turn`. Guarded if `live`; a replay is not.

    `closely`: what `prepare` returned for this workflow. None: as if any workflow of the process might need it.
    """
    thread = get_ident()
    if not live:
        _live.pop(thread, None)
        return
    if len(_modules) != _modules_seen:
        _catch_up()
    _live[thread] = None
    if _any_closely and closely is not False:
        guard_watch.start_profile()


def end_turn() -> DeterminismViolation | None:
    """The turn is over. Returns its first violation, whether it was swallowed or not: then drop the turn."""
    if _any_closely:
        guard_watch.stop_profile()
    return _live.pop(get_ident(), None)


def _catch_up() -> None:
    """Modules were loaded: look up their rules, patch them."""
    global _modules_seen
    _modules_seen = len(_modules)
    forbidden.refresh()
    patch_loaded_modules()
