"""Every spelling of a call that a replay could not repeat is stopped, and the message says what to write instead."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from sdk.guard_world import module, turn

ON_312 = pytest.mark.skipif(sys.version_info < (3, 12), reason="nothing to be seen of it without sys.monitoring")

# Name of the case: (module-level code, the line of the workflow that is to blame, what must be said to use).
SPELLINGS = {
    "random.randint": ("import random", "random.randint(1, 10)", "workflow.random().randint(...)"),
    "imported randint": ("from random import randint", "randint(1, 10)", "workflow.random().randint(...)"),
    "renamed randint": ("from random import randint as dice", "dice(1, 10)", "workflow.random().randint(...)"),
    "random.random": ("import random", "random.random()", "workflow.random().random(...)"),
    "imported random": ("from random import random", "random()", "workflow.random().random(...)"),
    "random.choice": ("import random as r", "r.choice([1, 2])", "workflow.random().choice(...)"),
    "random.shuffle": ("import random", "random.shuffle([1, 2, 3])", "workflow.random().shuffle(...)"),
    "random.gauss": ("import random", "random.gauss(0, 1)", "workflow.random().gauss(...)"),
    "random.getrandbits": ("from random import getrandbits", "getrandbits(8)", "workflow.random().getrandbits(...)"),
    "random.seed": ("import random", "random.seed(1)", "workflow.random()"),
    "unseeded Random": ("import random", "random.Random()", "give it a seed"),
    "Random seeded with None": ("from random import Random", "Random(None)", "give it a seed"),
    "SystemRandom": ("import random", "random.SystemRandom().random()", "workflow.random()"),
    "generator of the module": ("import random; rng = random.Random(42)", "rng.randint(1, 10)", "workflow.random()"),
    "C method of it": ("import random; rng = random.Random(42)", "rng.random()", "workflow.random()"),
    "datetime.now": ("from datetime import datetime", "datetime.now()", "workflow.now()"),
    "dt.datetime.now": ("import datetime as dt", "dt.datetime.now(dt.timezone.utc)", "workflow.now()"),
    "datetime.utcnow": ("import datetime", "getattr(datetime.datetime, 'utcnow')()", "workflow.now()"),
    "datetime.today": ("from datetime import datetime as D", "D.today()", "workflow.now()"),
    "date.today": ("from datetime import date", "date.today()", "workflow.now().date()"),
    "alias of now": ("from datetime import datetime\nnow = datetime.now", "now()", "workflow.now()"),
    "partial of now": (
        "from datetime import datetime\nfrom functools import partial\nnow = partial(datetime.now, None)",
        "now()",
        "workflow.now()",
    ),
    "subclass of datetime": ("import datetime as d\nclass D(d.datetime): pass", "D.now()", "workflow.now()"),
    "time.time": ("import time", "time.time()", "workflow.now().timestamp()"),
    "imported time": ("from time import time", "time()", "workflow.now().timestamp()"),
    "time.monotonic": ("import time", "time.monotonic()", "workflow.now()"),
    "perf_counter": ("from time import perf_counter as clock", "clock()", "workflow.now()"),
    "localtime": ("import time", "time.localtime()", "workflow.now()"),
    "strftime": ("import time", "time.strftime('%Y')", "workflow.now().strftime(...)"),
    "time.sleep": ("import time", "time.sleep(0)", "workflow.sleep(...)"),
    "imported sleep": ("from time import sleep", "sleep(0)", "workflow.sleep(...)"),
    "uuid4": ("from uuid import uuid4", "uuid4()", "workflow.uuid4()"),
    "uuid.uuid1": ("import uuid", "uuid.uuid1()", "workflow.uuid4()"),
    "secrets": ("import secrets", "secrets.token_hex(4)", "an activity"),
    "urandom": ("import os", "os.urandom(4)", "workflow.random().randbytes(...)"),
    "open": ("", "open(__file__)", "an activity"),
    "read_text": ("from pathlib import Path", "Path(__file__).read_text()", "an activity"),
    "exists": ("import os.path", "os.path.exists('/')", "an activity"),
    "socket": ("import socket", "socket.socket()", "an activity"),
    "subprocess.run": ("import subprocess, sys", "subprocess.run([sys.executable, '-V'])", "an activity"),
    "os.system": ("import os", "os.system('true')", "an activity"),
    "Thread.start": ("import threading", "threading.Thread(target=print).start()", "workflow.start(...)"),
    "asyncio.run": ("import asyncio", "asyncio.run(None)", "await"),
    "input": ("", "input()", "an activity"),
    "import in the function": ("", "__import__('time') and 1; import time; time.time()", "workflow.now()"),
    "from-import in the function": ("", "from random import randint; randint(1, 2)", "workflow.random().randint(...)"),
}

# How the line above gets executed. `{}` is the line; each must run it when `flow()` is called (and awaited).
PLACES = {
    "sync": "def flow():\n    {}",
    "async": "async def flow():\n    {}",
    "helper": "def helper():\n    {}\ndef flow():\n    helper()",
    "async helper": "async def helper():\n    {}\nasync def flow():\n    await helper()",
    "nested function": "def flow():\n    def inner():\n        {}\n    inner()",
    "method": (
        "class Flow:\n    def step(self):\n        {}\n    def run(self):\n        self.step()\n"
        "def flow():\n    Flow().run()"
    ),
    "property": (
        "class Thing:\n    @property\n    def age(self):\n        {}\ndef flow(thing: Thing = Thing()):\n    thing.age"
    ),
    "generator": "def steps():\n    {}\n    yield\ndef flow():\n    list(steps())",
    "sort key": "def key(item):\n    {}\n    return 0\ndef flow():\n    sorted([1], key=key)",
    "decorated": (
        "import functools\ndef deco(f):\n    @functools.wraps(f)\n    def g():\n        return f()\n    return g\n"
        "@deco\ndef helper():\n    {}\ndef flow():\n    helper()"
    ),
    "table": "def helper():\n    {}\nTABLE = {{'x': helper}}\ndef flow():\n    TABLE['x']()",
    "module-level object": "class S:\n    def go(self):\n        {}\nservice = S()\ndef flow():\n    service.go()",
    "__call__": "class S:\n    def __call__(self):\n        {}\nservice = S()\ndef flow():\n    service()",
}


def check(directory: Path, source: str, line: str, instead: str) -> None:
    made = module(directory, source)
    outcome = turn(made.flow)
    assert outcome.raised is not None, "not noticed"
    assert outcome.raised is outcome.violation
    text = str(outcome.raised)
    numbers = [number for number, each in enumerate(source.splitlines(), 1) if line in each]
    assert f"{made.__file__}:{numbers[-1]}," in text
    assert instead in text
    # The same code in a replay is left alone, and so is what runs between turns.
    assert turn(lambda: None, live=False, prepare=made.flow).violation is None


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_is_stopped_at_its_line(tmp_path: Path, name: str) -> None:
    before, line, instead = SPELLINGS[name]
    check(tmp_path, f"{before}\n{PLACES['sync'].format(line)}\n", line, instead)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["imported randint", "dt.datetime.now", "alias of now", "imported time", "uuid4"])
def test_it_is_stopped_wherever_it_hides(tmp_path: Path, name: str, place: str) -> None:
    before, line, instead = SPELLINGS[name]
    check(tmp_path, f"{before}\n{PLACES[place].format(line)}\n", line, instead)


EXPRESSIONS = {
    "lambda": "(lambda: {})()",
    "comprehension": "[{} for _ in range(1)]",
    "generator expression": "list({} for _ in range(1))",
    "argument": "print({}, file=None) if False else str({})",
    "f-string": "f'{{{}}}'",
    "walrus": "(x := {})",
    "conditional": "{} if True else None",
    "star": "[*[{}]]",
}


@pytest.mark.parametrize("shape", EXPRESSIONS)
@pytest.mark.parametrize("name", ["imported randint", "random.randint", "datetime.now", "dt.datetime.now"])
def test_it_is_stopped_in_every_expression(tmp_path: Path, name: str, shape: str) -> None:
    before, line, instead = SPELLINGS[name]
    written = EXPRESSIONS[shape].format(*[line] * 2)
    check(tmp_path, f"{before}\ndef flow():\n    return {written}\n", written, instead)


FACTORIES = {
    "dataclass, uuid4": "@dataclass\nclass Order:\n    at: object = field(default_factory=uuid4)",
    "dataclass, now": "@dataclass\nclass Order:\n    at: object = field(default_factory=datetime.now)",
    "dataclass, time": "@dataclass(slots=True)\nclass Order:\n    at: object = field(default_factory=time.time)",
    "dataclass, part": "@dataclass\nclass Order:\n    at: object = field(default_factory=partial(datetime.now, UTC))",
    "dataclass, lambda": "@dataclass\nclass Order:\n    at: object = field(default_factory=lambda: datetime.now(UTC))",
    "pydantic, uuid4": "class Order(BaseModel):\n    at: object = Field(default_factory=uuid4)",
    "pydantic, partial": "class Order(BaseModel):\n    at: object = Field(default_factory=partial(datetime.now, UTC))",
    "pydantic, lambda": "class Order(BaseModel):\n    at: object = Field(default_factory=lambda: datetime.now(UTC))",
    "pydantic, now": "class Order(BaseModel):\n    id: int = 1\n    at: object = Field(default_factory=datetime.now)",
    "msgspec, uuid4": "class Order(Struct):\n    at: object = msgspec.field(default_factory=uuid4)",
    "defaultdict": "def Order():\n    return defaultdict(uuid4)['x']",
    "default argument": "def Order(clock=time.time):\n    return clock()",
    "closure": "def make(now):\n    def Order():\n        return now()\n    return Order\nOrder = make(datetime.now)",
    "class attribute": "class Order:\n    now = staticmethod(time.time)\n    def __init__(self):\n        self.now()",
    "post_init": "@dataclass\nclass Order:\n    def __post_init__(self):\n        self.at = datetime.now()",
}


@pytest.mark.parametrize("name", FACTORIES)
def test_values_made_by_default_are_stopped(tmp_path: Path, name: str) -> None:
    made = module(
        tmp_path,
        "import time, msgspec\nfrom collections import defaultdict\nfrom dataclasses import dataclass, field\n"
        "from datetime import UTC, datetime\nfrom functools import partial\nfrom uuid import uuid4\n"
        f"from msgspec import Struct\nfrom pydantic import BaseModel, Field\n{FACTORIES[name]}\n"
        "def flow():\n    return Order()\n",
    )
    outcome = turn(made.flow)
    assert outcome.raised is not None
    assert outcome.raised is outcome.violation
    assert made.__file__ in str(outcome.raised)


MODELS = """
import time
from datetime import datetime
from msgspec import Struct, field
from pydantic import BaseModel, Field
class Model(BaseModel):
    id: int = 1
    at: object = Field(default_factory=datetime.now, alias="when")
class Record(Struct):
    id: int
    at: object = field(default_factory=time.time)
def flow():
    return {}
"""


@pytest.mark.parametrize(
    ("made", "stopped"),
    [
        ("Model()", True),
        ("Model(id=2)", True),
        ("Model(when=1)", False),
        ("Model(id=2, when=1)", False),
        pytest.param("Record(1)", True, marks=ON_312),
        pytest.param("Record(id=1)", True, marks=ON_312),
        ("Record(1, 2)", False),
        ("Record(1, at=2)", False),
        ("Record(at=2, id=1)", False),
    ],
)
def test_a_default_that_compiled_code_would_make_is_stopped_and_a_given_value_is_not(
    tmp_path: Path, made: str, stopped: bool
) -> None:
    outcome = turn(module(tmp_path, MODELS.replace("{}", made)).flow)
    assert (outcome.raised is not None) is stopped
    assert outcome.raised is outcome.violation
    if stopped:
        field, factory = ("when", "datetime.datetime.now") if "Model" in made else ("at", "time.time")
        assert f"called `{made}` ({factory})" in str(outcome.raised)
        assert f"fills the field `{field}` from {factory}, which reads the clock" in str(outcome.raised)
        assert f"({field}=...) with workflow.now()" in str(outcome.raised)


def test_a_helper_in_another_module_of_the_users_is_stopped_there(tmp_path: Path) -> None:
    helpers = module(tmp_path, "from datetime import datetime\ndef stamp():\n    return datetime.now()\n")
    for source in (
        f"import {helpers.__name__} as h\ndef flow():\n    return h.stamp()\n",
        f"from {helpers.__name__} import stamp\ndef flow():\n    return stamp()\n",
        f"def flow():\n    from {helpers.__name__} import stamp\n    return stamp()\n",
    ):
        outcome = turn(module(tmp_path, source).flow)
        assert f"{helpers.__file__}:3, in stamp" in str(outcome.violation)


def test_a_helper_module_that_is_imported_only_in_the_turn_is_guarded_too(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "late_of_guard_test.py").write_text("from datetime import datetime\nnow = lambda: datetime.now()\n")
    made = module(tmp_path, "def flow():\n    import late_of_guard_test as late\n    return late.now()\n")
    assert f"{tmp_path / 'late_of_guard_test.py'}:2, in <lambda>" in str(turn(made.flow).violation)


@pytest.mark.parametrize("method", ["run", "signal", "helper", "cached"])
def test_every_method_of_a_workflow_class_is_guarded(tmp_path: Path, method: str) -> None:
    lines = {each: "now()" if each == method else "0" for each in ("run", "signal", "helper", "cached")}
    made = module(
        tmp_path,
        "import functools\nfrom datetime import datetime\nnow = datetime.now\n"
        "class Flow:\n"
        f"    async def run(self): return {lines['run']}, self.helper(), self.cached()\n"
        f"    def signal(self): return {lines['signal']}\n"
        f"    @staticmethod\n    def helper(): return {lines['helper']}\n"
        f"    @functools.lru_cache\n    def cached(self): return {lines['cached']}\n",
    )
    flow = made.Flow()
    outcome = turn(flow.signal if method == "signal" else flow.run, prepare=made.Flow)
    assert outcome.raised is not None
    assert outcome.raised is outcome.violation
    assert f", in Flow.{method}." in str(outcome.raised)


def test_a_workflow_that_is_installed_in_site_packages_is_the_users_code(tmp_path: Path) -> None:
    package = tmp_path / "site-packages" / "shop_of_guard_test"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    sys.path.insert(0, str(package.parent))
    try:
        (package / "clock.py").write_text("import time\ndef stamp():\n    return time.time()\n")
        (package / "flows.py").write_text("from .clock import stamp\ndef flow():\n    return stamp()\n")
        from shop_of_guard_test.flows import flow  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(package.parent))
    assert "clock.py:3, in stamp" in str(turn(flow).violation)


def test_a_connection_deep_inside_a_library_is_put_down_to_the_line_that_asked(tmp_path: Path) -> None:
    (tmp_path / "site-packages").mkdir()
    library = module(
        tmp_path / "site-packages",
        """
        import socket, time
        def get(url):
            time.time()
            with socket.socket() as connection:
                connection.connect(("127.0.0.1", 9))
        """,
    )
    made = module(
        tmp_path, f"import {library.__name__} as requests\ndef flow():\n    requests.get('http://localhost')\n"
    )
    text = str(turn(made.flow).violation)
    assert "`requests.get('http://localhost')`, and so socket.connect, at" in text
    assert f"{made.__file__}:3, in flow" in text


def test_the_message_tells_everything_at_once(tmp_path: Path) -> None:
    made = module(tmp_path, "from datetime import datetime as D\n\ndef flow():\n    return [D.now()]\n")
    assert str(turn(made.flow).violation) == (
        f"workflow code called `D.now()` (datetime.datetime.now) at {made.__file__}:4, in flow. This reads the clock, "
        "and a replay would read another time. Use workflow.now(). Nothing of this turn was written; the run waits, "
        "and goes on when the code is changed. If what it returns cannot change what the workflow does, put it into a "
        "`with workflow.unsafe():` block."
    )
