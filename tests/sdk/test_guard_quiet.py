"""The guard raises no false alarm: not for what a replay can repeat, not for libraries, not outside live turns."""

from __future__ import annotations

import asyncio
import copy
import os
import pickle
import random
import threading
import time
import uuid
from datetime import datetime
from functools import partial
from pathlib import Path

import pytest

from outlast.sdk import guard
from sdk.guard_world import module, turn

REPEATABLE = {
    "datetime of numbers": "datetime.datetime(2024, 1, 1) + datetime.timedelta(days=1)",
    "fromisoformat": "datetime.datetime.fromisoformat('2024-01-01').date().isoformat()",
    "fromtimestamp": "datetime.datetime.fromtimestamp(0, datetime.UTC), datetime.date.fromtimestamp(0)",
    "combine": "datetime.datetime.combine(datetime.date.min, datetime.time(12))",
    "times that are given": "time.localtime(0), time.gmtime(0), time.ctime(0), time.strftime('%Y', time.gmtime(0))",
    "seeded generator": "random.Random(42).randint(1, 10), random.Random(x=1).random()",
    "own generator": "[rng for rng in [random.Random(7)] if rng.gauss(0, 1) or rng.shuffle([1, 2]) or rng.random()]",
    "generator class as a value": "isinstance(1, random.Random), random.Random, random.SystemRandom",
    "uuid of a value": "uuid.UUID(int=5), uuid.uuid5(uuid.NAMESPACE_DNS, 'x'), uuid.uuid3(uuid.NAMESPACE_DNS, 'x')",
    "mentioned, not called": "datetime.datetime.now, time.time, random.randint, uuid.uuid4, open, os.urandom",
    "logging": "logging.getLogger('x').warning('%s', 1), logging.LogRecord('x', 1, 'p', 1, 'm', (), None)",
    "paths as names": "Path('a') / 'b', Path('a').suffix, os.path.join('a', 'b'), os.path.basename('a/b')",
    "environment": "os.environ.get('HOME'), os.getenv('HOME'), os.getpid()",
    "dataclass with its value given": "Stamped(at=datetime.datetime.min)",
    "dataclass made": "dataclasses.make_dataclass('X', ['a'])(1)",
    "json and text": "json.loads(json.dumps({'a': [1]})), 'a'.replace('a', 'b'), sorted([2, 1])",
    "threading without threads": "threading.Lock().acquire(), threading.Event().is_set()",
    "asyncio": "asyncio.Queue(), asyncio.Event(), asyncio.Lock(), asyncio.Semaphore(2)",
    "libraries' own calls": "email.utils.make_msgid(), warnings.catch_warnings().__enter__()",
    "zone files": "zoneinfo.ZoneInfo.no_cache('UTC')",
    "tracebacks read source files": "traceback.format_stack()",
    "own names like the clock's": "Fake().now(), Fake().time(), Fake.today()",
}
HEAD = """
import asyncio, dataclasses, datetime, email.utils, json, logging, os, random, threading, time, traceback, uuid
import warnings, zoneinfo
from pathlib import Path
@dataclasses.dataclass
class Stamped:
    at: object = dataclasses.field(default_factory=datetime.datetime.now)
class Fake:
    def now(self): return 1
    def time(self): return 2
    @classmethod
    def today(cls): return 3
"""


@pytest.mark.parametrize("shape", ["return {}", "return [{} for _ in range(2)]", "return (lambda: ({}))()"])
@pytest.mark.parametrize("name", REPEATABLE)
def test_what_a_replay_can_repeat_is_let_through(tmp_path: Path, name: str, shape: str) -> None:
    written = shape.format(f"({REPEATABLE[name]})")
    outcome = turn(module(tmp_path, f"{HEAD}\ndef flow():\n    {written}\n").flow)
    assert outcome.raised is None
    assert outcome.violation is None
    assert outcome.value is not None


FORBIDDEN = """
import random, time, uuid
from datetime import datetime
def flow():
    return random.randint(1, 10), random.random(), time.time(), uuid.uuid4(), datetime.now(), open(__file__).close()
"""


def test_a_replay_is_left_alone(tmp_path: Path) -> None:
    outcome = turn(module(tmp_path, FORBIDDEN).flow, live=False)
    assert outcome.violation is None
    assert outcome.value[0] in range(1, 11)


def test_the_same_code_outside_of_turns_is_left_alone(tmp_path: Path) -> None:
    flow = module(tmp_path, FORBIDDEN).flow
    assert turn(flow).violation is not None
    assert flow()[0] in range(1, 11)
    assert turn(lambda: 1, prepare=flow).violation is None


def test_other_threads_are_left_alone_during_a_turn(tmp_path: Path) -> None:
    flow = module(tmp_path, FORBIDDEN).flow
    done: list[object] = []
    closely = guard.prepare(flow, "flow")
    thread = threading.Thread(target=lambda: done.append(flow()))
    guard.begin_turn(True, closely)
    try:
        with guard.unsafe():
            thread.start()
            thread.join()
    finally:
        violation = guard.end_turn()
    assert violation is None
    assert len(done) == 1


def test_an_activity_that_workflow_code_names_is_not_reached(tmp_path: Path) -> None:
    # Stands for the SDK's own class, whose instances carry `kind` and `__wrapped__` too.
    durable = type("Durable", (), {"__module__": "outlast.sdk.durable", "__call__": lambda self: 7})
    made = module(tmp_path, "import time\ndef work():\n    return time.time()\ndef flow():\n    return work()\n")
    work = durable()
    work.kind, work.__wrapped__ = "activity", made.work
    made.work = work
    assert guard.scan(made.flow) == []
    assert turn(made.flow).value == 7
    work.kind = "workflow"  # its function may be called as a part of this run
    assert [finding.name for finding in guard.scan(made.flow)] == ["time.time"]


def test_a_log_formatter_of_the_users_may_read_the_clock(tmp_path: Path) -> None:
    made = module(
        tmp_path,
        """
        import logging, random, time
        from datetime import datetime
        class Formatter(logging.Formatter):
            def format(self, record):
                return f"{datetime.now()} {time.time()} {random.randint(1, 10)}"
        logger = logging.Logger("guarded")
        handler = logging.StreamHandler(open(__import__("os").devnull, "w"))
        handler.setFormatter(Formatter())
        logger.addHandler(handler)
        def flow():
            logger.warning("hello")
            time.gmtime(0), datetime.min
        """,
    )
    try:
        assert turn(made.flow).violation is None
    finally:
        made.handler.stream.close()


def test_a_finaliser_that_happens_to_run_in_a_turn_is_not_the_workflows(tmp_path: Path) -> None:
    made = module(
        tmp_path,
        """
        import random, time
        class Thing:
            def __del__(self):
                seen.append((random.randint(1, 10), time.time()))
        seen = []
        def flow():
            thing = Thing()
            del thing
        """,
    )
    assert turn(made.flow).violation is None
    assert len(made.seen) == 1


def test_patched_things_behave_as_before() -> None:
    guard.install()
    assert len(os.urandom(8)) == 8
    assert uuid.uuid4() != uuid.uuid4()
    random.seed(5)
    first = [random.randint(1, 1000), random.random(), random.choice("abc"), random.getrandbits(9), random.gauss(0, 1)]
    again = random.Random(5)
    assert first == [
        again.randint(1, 1000),
        again.random(),
        again.choice("abc"),
        again.getrandbits(9),
        again.gauss(0, 1),
    ]
    shared = random.randint.__self__  # type: ignore[attr-defined]
    assert isinstance(shared, random.Random)
    assert pickle.loads(pickle.dumps(shared)).getstate() == shared.getstate()
    assert copy.copy(shared).getstate() == shared.getstate()
    assert type("Holder", (), {"source": os.urandom})().source(3) != b"abc"


def test_a_partial_that_is_guarded_stays_a_partial(tmp_path: Path) -> None:
    made = module(
        tmp_path,
        """
        from datetime import datetime
        from functools import partial
        now = partial(datetime.now, None)
        def flow():
            return now()
        """,
    )
    assert turn(made.flow).violation is not None
    assert isinstance(made.now(), datetime)
    assert type(made.now) is partial
    assert isinstance(pickle.loads(pickle.dumps(made.now))(), datetime)
    assert made.now.func.__name__ == "now"


def test_installing_twice_changes_nothing() -> None:
    guard.install()
    before = os.urandom, threading.Thread.start, type(random.randint.__self__)  # type: ignore[attr-defined]
    guard.install()
    assert before == (os.urandom, threading.Thread.start, type(random.randint.__self__))  # type: ignore[attr-defined]


def test_importing_the_guard_installs_nothing() -> None:
    import subprocess
    import sys

    probe = (
        "import os, sys; before = os.urandom; import outlast.sdk.guard as g; assert os.urandom is before; "
        "import random; assert type(random._inst) is random.Random; "
        "g.install(); assert os.urandom is not before; print('done')"
    )
    assert subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout == "done\n"


async def test_an_event_loop_of_the_process_goes_on_between_turns() -> None:
    guard.install()
    started = time.monotonic()
    guard.begin_turn(True)
    assert guard.end_turn() is None
    await asyncio.sleep(0)
    assert time.monotonic() >= started
