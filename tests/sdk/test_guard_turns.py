"""A violation poisons its turn and no other; blocks that are excepted except what is called from them, no more."""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import greenlet
import pytest

from outlast.model.errors import DeterminismViolation
from outlast.sdk import guard
from sdk.guard_world import module, turn

CLOCKS = "import time\nfrom random import randint\nfrom datetime import datetime\n"


def test_swallowing_the_violation_does_not_help(tmp_path: Path) -> None:
    made = module(
        tmp_path,
        CLOCKS
        + """
def flow():
    for attempt in range(3):
        try:
            datetime.now() if attempt == 0 else time.time()
        except BaseException:
            pass
    return "unharmed"
""",
    )
    outcome = turn(made.flow)
    assert outcome.value == "unharmed"
    assert outcome.raised is None
    assert "datetime.now()" in str(outcome.violation)
    assert turn(lambda: 1, prepare=made.flow).violation is None


def test_except_exception_does_not_swallow_it(tmp_path: Path) -> None:
    made = module(
        tmp_path, CLOCKS + "def flow():\n    try:\n        randint(1, 10)\n    except Exception:\n        return 1\n"
    )
    assert turn(made.flow).raised is not None


def test_unsafe_excepts_its_block_and_what_it_calls(tmp_path: Path) -> None:
    made = module(
        tmp_path,
        CLOCKS
        + """
from outlast.sdk import guard
def helper():
    return [time.time() for _ in range(2)]
def flow():
    with guard.unsafe():
        randint(1, 10), helper(), (lambda: datetime.now())()
        with guard.unsafe():
            time.time()
        time.time()
    return "before"
def after():
    with guard.unsafe():
        pass
    return time.time()
def failing():
    try:
        with guard.unsafe():
            raise ValueError
    except ValueError:
        return time.time()
""",
    )
    assert turn(made.flow).value == "before"
    assert turn(made.flow).violation is None
    assert turn(made.after).violation is not None
    assert turn(made.failing).violation is not None


def test_unsafe_can_be_entered_through_an_exit_stack() -> None:
    def flow() -> float:
        with contextlib.ExitStack() as stack:
            stack.enter_context(guard.unsafe())
            return time.time()

    assert turn(flow).violation is None


def test_a_block_that_is_suspended_excepts_nobody_else_and_stays_in_force() -> None:
    def careful() -> Generator[None]:
        with guard.unsafe():
            yield
            time.time()
        yield
        time.time()

    def careless() -> float:
        return time.time()

    running = careful()
    assert turn(lambda: next(running), prepare=careful).violation is None
    assert turn(careless).violation is not None
    assert turn(lambda: next(running), prepare=careful).violation is None
    assert turn(lambda: next(running), prepare=careful).violation is not None


def test_a_block_that_is_dropped_half_way_is_collected() -> None:
    class Marker:
        pass

    def careful(marker: Marker) -> Generator[None]:
        with guard.unsafe():
            yield

    marker = Marker()
    gone = weakref.ref(marker)
    running = careful(marker)
    next(running)
    del marker, running
    gc.collect()
    assert gone() is None


def test_turns_of_two_threads_do_not_mix(tmp_path: Path) -> None:
    made = module(tmp_path, CLOCKS + "def flow():\n    return time.time()\n")
    closely = guard.prepare(made.flow, "flow")
    both = threading.Barrier(2)
    found: dict[str, object] = {}

    def node(name: str, live: bool) -> None:
        guard.begin_turn(live, closely)
        both.wait()
        with contextlib.suppress(DeterminismViolation):
            made.flow()
        both.wait()
        found[name] = guard.end_turn()

    threads = [threading.Thread(target=node, args=each) for each in (("live", True), ("replay", False))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert isinstance(found["live"], DeterminismViolation)
    assert found["replay"] is None


class Fiber:
    """User code in a greenlet, resumed by the hub in one turn after another."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._closely = guard.prepare(function, "fiber")
        self._greenlet = greenlet.greenlet(self._run)
        self._function = function
        self.raised: BaseException | None = None

    def _run(self) -> None:
        try:
            self._function(greenlet.getcurrent().parent.switch)
        except DeterminismViolation as violation:
            self.raised = violation

    def resume(self, *, live: bool = True) -> DeterminismViolation | None:
        guard.begin_turn(live, self._closely)
        try:
            self._greenlet.switch()
        finally:
            violation = guard.end_turn()
        return violation


@pytest.mark.parametrize("suspended_in_turn", [0, 1, 2])
def test_greenlets_are_guarded_in_the_turn_that_resumes_them(tmp_path: Path, suspended_in_turn: int) -> None:
    made = module(
        tmp_path,
        CLOCKS + f"def flow(switch):\n    for _ in range({suspended_in_turn}):\n        switch()\n    datetime.now()\n",
    )
    fiber = Fiber(made.flow)
    for _ in range(suspended_in_turn):
        assert fiber.resume() is None
        assert made.datetime.now() is not None  # between turns the hub may do as it likes
        assert sys.getprofile() is None
    violation = fiber.resume()
    assert violation is not None
    assert violation is fiber.raised


def test_a_greenlet_that_was_suspended_in_a_live_turn_is_not_guarded_in_a_replay(tmp_path: Path) -> None:
    made = module(tmp_path, CLOCKS + "def flow(switch):\n    switch()\n    datetime.now(), randint(1, 10)\n")
    fiber = Fiber(made.flow)
    assert fiber.resume(live=True) is None
    assert fiber.resume(live=False) is None
    assert fiber.raised is None


def test_a_greenlet_suspended_inside_unsafe_excepts_nobody_else(tmp_path: Path) -> None:
    made = module(
        tmp_path,
        CLOCKS
        + """
from outlast.sdk import guard
def careful(switch):
    with guard.unsafe():
        switch()
        datetime.now()
    switch()
    datetime.now()
def careless(switch):
    datetime.now()
""",
    )
    careful, careless = Fiber(made.careful), Fiber(made.careless)
    assert careful.resume() is None
    assert careless.resume() is not None
    assert careful.resume() is None
    assert careful.resume() is not None


def test_a_turn_that_was_never_ended_does_not_haunt_the_next(tmp_path: Path) -> None:
    made = module(tmp_path, CLOCKS + "def flow():\n    return time.time()\n")
    closely = guard.prepare(made.flow, "flow")
    guard.begin_turn(True, closely)
    with pytest.raises(DeterminismViolation):
        made.flow()
    guard.begin_turn(False, closely)
    made.flow()
    assert guard.end_turn() is None
    assert sys.getprofile() is None


# --- other tools in the process -----------------------------------------------------------------------------------


@pytest.fixture
def flow(tmp_path: Path) -> Callable[[], object]:
    made = module(tmp_path, CLOCKS + "def helper():\n    return datetime.now()\ndef flow():\n    return helper()\n")
    found: Callable[[], object] = made.flow
    return found


@contextlib.contextmanager
def tracing(function: Any) -> Iterator[None]:
    before = sys.gettrace()
    sys.settrace(function)
    try:
        yield
    finally:
        sys.settrace(before)


def test_a_debugger_sees_every_line_and_the_guard_still_works(flow: Callable[[], object]) -> None:
    lines: list[tuple[str, int]] = []

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        if event == "line" and frame.f_code.co_filename == flow.__code__.co_filename:  # type: ignore[attr-defined]
            lines.append((frame.f_code.co_name, frame.f_lineno))
        return trace

    with tracing(trace):
        outcome = turn(flow)
    assert outcome.raised is not None
    assert lines == [("flow", 7), ("helper", 5)]


def test_a_profile_function_that_was_there_is_called_on_and_put_back(flow: Callable[[], object]) -> None:
    seen: list[str] = []

    def profile(frame: FrameType, event: str, arg: object) -> None:
        if event == "call":
            seen.append(frame.f_code.co_name)

    sys.setprofile(profile)
    try:
        outcome = turn(flow)
        assert sys.getprofile() is profile
    finally:
        sys.setprofile(None)
    assert outcome.raised is not None
    assert "flow" in seen
    assert "helper" in seen


@pytest.mark.skipif(sys.version_info < (3, 12), reason="sys.monitoring came with 3.12")
def test_the_ids_of_debuggers_coverage_and_profilers_are_left_to_them(flow: Callable[[], object]) -> None:
    monitoring = sys.monitoring  # type: ignore[attr-defined]
    guard.install()
    assert [monitoring.get_tool(number) for number in range(3)].count("outlast") == 0
    executed: list[int] = []
    monitoring.use_tool_id(monitoring.PROFILER_ID, "another tool")
    try:
        monitoring.register_callback(
            monitoring.PROFILER_ID, monitoring.events.LINE, lambda code, line: executed.append(line)
        )
        monitoring.set_local_events(monitoring.PROFILER_ID, flow.__code__, monitoring.events.LINE)  # type: ignore[attr-defined]
        assert turn(flow).raised is not None
    finally:
        monitoring.free_tool_id(monitoring.PROFILER_ID)
    assert executed == [7]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="sys.monitoring came with 3.12")
def test_where_every_tool_id_is_taken_the_guard_works_all_the_same(tmp_path: Path) -> None:
    import subprocess

    (tmp_path / "flows.py").write_text(CLOCKS + "def flow():\n    return datetime.now()\n")
    probe = f"""
import sys; sys.path.insert(0, {str(tmp_path)!r})
for number in range(6):
    if sys.monitoring.get_tool(number) is None:
        sys.monitoring.use_tool_id(number, "taken")
from outlast.model.errors import DeterminismViolation
from outlast.sdk import guard
from flows import flow
guard.install()
closely = guard.prepare(flow, "flow")
guard.begin_turn(True, closely)
try:
    flow()
except DeterminismViolation:
    print("stopped")
print(guard.end_turn() is not None, sys.getprofile())
"""
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout == "stopped\nTrue None\n"
    assert "no free tool id" in done.stderr


def test_coverage_measures_guarded_code_completely(tmp_path: Path) -> None:
    coverage = pytest.importorskip("coverage")
    import subprocess

    (tmp_path / "flows.py").write_text(CLOCKS + "def flow():\n    x = 1\n    datetime.now()\n    return x\n")
    (tmp_path / "probe.py").write_text(
        "from outlast.model.errors import DeterminismViolation\nfrom outlast.sdk import guard\nfrom flows import flow\n"
        "guard.install()\nclosely = guard.prepare(flow, 'flow')\nguard.begin_turn(True, closely)\n"
        "try:\n    flow()\nexcept DeterminismViolation:\n    print('stopped')\nguard.end_turn()\n"
    )
    command = [sys.executable, "-m", "coverage", "run", "--include=*/flows.py", "probe.py"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout == "stopped\n"
    data = coverage.CoverageData(str(tmp_path / ".coverage"))
    data.read()
    (file,) = data.measured_files()
    assert set(data.lines(file) or ()) >= {1, 2, 3, 4, 5, 6}
    assert 7 not in (data.lines(file) or ())
