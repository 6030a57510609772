"""The table of calls that a replay could not repeat, and what to write instead.

A rule names a callable by where it is found: "datetime:datetime.now". `Forbidden` turns names into the real objects,
so that a call is recognised whatever the user's code calls it by. Modules are never imported for that; a module that
is loaded later is looked up later (`refresh`). Names that this Python version lacks are passed over.
"""

from __future__ import annotations

import sys
from enum import Enum
from types import (
    BuiltinFunctionType,
    ClassMethodDescriptorType,
    FunctionType,
    MethodDescriptorType,
    MethodType,
    WrapperDescriptorType,
)

from msgspec import Struct


class When(Enum):
    """Which calls of the callable are meant."""

    ALWAYS = "always"
    NO_ARGUMENT = "no argument"
    """`time.localtime()` reads the clock, `time.localtime(t)` does not."""
    ONE_ARGUMENT = "one argument"
    """`time.strftime(format)` reads the clock, `time.strftime(format, t)` does not."""
    UNSEEDED = "unseeded"
    """`random.Random()` seeds itself, `random.Random(42)` is the same in every replay."""
    SHARED = "shared"
    """A method of a generator that other runs draw from too, because it belongs to a module or a class."""
    ADVICE = "advice"
    """Reported by a scan, never raised."""


class Rule(Struct, frozen=True):
    name: str
    """How the documentation of Python calls it: "datetime.datetime.now"."""
    why: str
    """Continues "This ...": what it does that a replay cannot repeat."""
    instead: str
    """Continues "Use ..."."""
    when: When = When.ALWAYS
    hooked: bool = False
    """Patched (see guard_hooks), hence noticed without watching calls."""


class _Family(Struct, frozen=True):
    module: str
    names: str
    why: str
    instead: str
    """`{name}` stands for the last part of the name."""
    when: When = When.ALWAYS
    hooked: bool = False


_CLOCK = "reads the clock, and a replay would read another time"
_CHANCE = "is random, and a replay would draw something else"
_FILES = "works on files, and a replay would do it again, or find something else"
_NETWORK = "talks to the network, and a replay would do it again, or get another answer"
_PROCESS = "starts a process, and every replay would start another"
_THREAD = "starts a thread, which no replay runs in the same order"
_PLACE = "differs between processes, and a replay may run in another"
_ACTIVITY = "an activity: its result is recorded, and a replay gets the recorded one"
_NOW = "workflow.now()"
_DRAW = "workflow.random().{name}(...)"
_TIMER = "workflow.now() for the time of day; to measure how long something takes, do it in an activity"

_DRAWS = (
    "uniform triangular randint choice randrange sample shuffle choices normalvariate lognormvariate expovariate "
    "vonmisesvariate gammavariate betavariate binomialvariate paretovariate weibullvariate randbytes"
)
"""Functions that draw from `Random.random` or `Random.getrandbits` each time, where the hooks see it."""
_DRAWS_UNSEEN = "random getrandbits gauss"
"""Written in C; `gauss` returns every second value without a draw."""
_METHODS = " ".join(f"Random.{name}" for name in f"{_DRAWS} {_DRAWS_UNSEEN} seed setstate getstate".split())
_PATH_METHODS = (
    "read_text read_bytes write_text write_bytes open exists is_file is_dir stat iterdir glob rglob mkdir rmdir "
    "unlink rename replace touch"
)
_OS_FILES = "open listdir scandir stat lstat remove unlink rename replace mkdir makedirs rmdir removedirs walk access"

_FAMILIES = (
    _Family("datetime", "datetime.now datetime.utcnow datetime.today", _CLOCK, _NOW),
    _Family("datetime", "date.today", _CLOCK, "workflow.now().date()"),
    _Family("time", "time time_ns clock_gettime clock_gettime_ns", _CLOCK, "workflow.now().timestamp()"),
    _Family("time", "monotonic monotonic_ns perf_counter perf_counter_ns", _CLOCK, _TIMER),
    _Family("time", "process_time process_time_ns thread_time thread_time_ns", _CLOCK, _TIMER),
    _Family("time", "localtime gmtime ctime asctime", _CLOCK, _NOW, When.NO_ARGUMENT),
    _Family("time", "strftime", _CLOCK, "workflow.now().strftime(...)", When.ONE_ARGUMENT),
    _Family("time", "sleep", "blocks every other run here, and is forgotten in a crash", "workflow.sleep(...)"),
    _Family("random", _DRAWS, _CHANCE, _DRAW, hooked=True),
    _Family("random", _DRAWS_UNSEEN, _CHANCE, _DRAW),
    _Family("random", "seed setstate getstate", "touches the generator that the process shares", "workflow.random()"),
    _Family("random", "Random", _CHANCE, "workflow.random(), or give it a seed", When.UNSEEDED),
    _Family("random", "Random.__init__", _CHANCE, "workflow.random(), or give it a seed", When.UNSEEDED),
    _Family("random", "SystemRandom", _CHANCE, "workflow.random()", hooked=True),
    _Family("random", _METHODS, "draws from a generator that other runs draw from too", _DRAW, When.SHARED),
    _Family("uuid", "uuid4", _CHANCE, "workflow.uuid4()", hooked=True),
    _Family("uuid", "uuid1 uuid6 uuid7 uuid8 getnode", _CHANCE, "workflow.uuid4()"),
    _Family("secrets", "token_bytes token_hex token_urlsafe", _CHANCE, _ACTIVITY, hooked=True),
    _Family("secrets", "choice randbelow randbits", _CHANCE, _ACTIVITY, hooked=True),
    _Family("os", "urandom", _CHANCE, "workflow.random().randbytes(...)", hooked=True),
    _Family("os", "getrandom", _CHANCE, "workflow.random().randbytes(...)"),
    _Family("builtins", "open", _FILES, _ACTIVITY),
    _Family("os", _OS_FILES, _FILES, _ACTIVITY),
    _Family("os.path", "exists lexists isfile isdir islink getsize getmtime getctime getatime", _FILES, _ACTIVITY),
    _Family("pathlib", " ".join(f"Path.{name}" for name in _PATH_METHODS.split()), _FILES, _ACTIVITY),
    _Family("shutil", "copy copy2 copyfile copytree move rmtree disk_usage which", _FILES, _ACTIVITY),
    _Family("tempfile", "TemporaryFile NamedTemporaryFile TemporaryDirectory mkstemp mkdtemp", _FILES, _ACTIVITY),
    _Family("glob", "glob iglob", _FILES, _ACTIVITY),
    _Family("sqlite3", "connect", _FILES, _ACTIVITY),
    _Family("builtins", "input", "waits for somebody to type", "an activity"),
    _Family("socket", "socket socket.__init__ create_connection getaddrinfo gethostbyname", _NETWORK, _ACTIVITY),
    _Family("urllib.request", "urlopen urlretrieve", _NETWORK, _ACTIVITY, hooked=True),
    _Family("subprocess", "Popen run call check_call check_output getoutput", _PROCESS, _ACTIVITY, hooked=True),
    _Family("os", "system popen fork forkpty posix_spawn posix_spawnp execv execve", _PROCESS, _ACTIVITY),
    _Family("threading", "Thread.start", _THREAD, "asyncio.gather(...) or workflow.start(...)", hooked=True),
    _Family("_thread", "start_new_thread start_joinable_thread", _THREAD, "workflow.start(...)"),
    _Family("asyncio", "run Runner.run", "starts a second event loop", "await; a workflow has a loop of its own"),
    _Family("os", "getenv", _PLACE, f"{_ACTIVITY}, or an argument of the workflow", When.ADVICE),
    _Family("os", "getpid getppid cpu_count getcwd", _PLACE, _ACTIVITY, When.ADVICE),
    _Family("socket", "gethostname getfqdn", _PLACE, _ACTIVITY, When.ADVICE),
    # Other people's packages; looked up only where the program itself has loaded them.
    _Family("django.utils.timezone", "now localtime localdate", _CLOCK, _NOW),
    _Family("pendulum", "now today tomorrow yesterday", _CLOCK, "pendulum.instance(workflow.now())"),
    _Family("arrow", "now utcnow", _CLOCK, "arrow.get(workflow.now())"),
    _Family("numpy.random", "rand randn randint random random_sample choice shuffle permutation uniform normal "
            "standard_normal bytes seed", _CHANCE, "numpy.random.default_rng(workflow.random().getrandbits(64))"),
    _Family("numpy.random", "default_rng", _CHANCE, "default_rng(workflow.random().getrandbits(64))", When.UNSEEDED),
    _Family("requests", "get post put patch delete head options request Session.request", _NETWORK, _ACTIVITY),
    _Family("httpx", "get post put patch delete head options request stream Client.send", _NETWORK, _ACTIVITY),
)  # fmt: skip

DRAWN = Rule("os.urandom", _CHANCE, "workflow.random().randbytes(...) or workflow.uuid4()", hooked=True)
CONNECTED = Rule("socket.connect", _NETWORK, _ACTIVITY, hooked=True)
SPAWNED = Rule("subprocess.Popen", _PROCESS, _ACTIVITY, hooked=True)
THREADED = Rule("threading.Thread.start", _THREAD, "asyncio.gather(...) or workflow.start(...)", hooked=True)

SUSPICIOUS_NAMES = frozenset(
    "now utcnow today time time_ns monotonic monotonic_ns perf_counter perf_counter_ns process_time "
    f"localdate localtime getrandom uuid1 uuid6 uuid7 {_PATH_METHODS}".split()
) - {"replace", "rename", "open", "stat", "touch"}
"""Where nothing is known of `x` in `x.now()`, the name alone makes it worth a look at run time. Only names that no
hook covers, and not those that mostly mean something else (`str.replace`)."""

TELLING_NAMES = SUSPICIOUS_NAMES | {name.rpartition(".")[2] for family in _FAMILIES for name in family.names.split()}
"""Code that names none of these, and holds nothing forbidden, calls nothing forbidden by name."""

CLOCK_METHODS = frozenset({"now", "utcnow", "today"})


_HASHED_BY_IDENTITY = frozenset({FunctionType, MethodDescriptorType, WrapperDescriptorType, ClassMethodDescriptorType})


class Forbidden:
    """The rules as real objects. One per process; only ever grows."""

    def __init__(self) -> None:
        self.by_object: dict[object, Rule] = {}
        """Functions, C functions, descriptors, classes whose metaclass is `type`: their hash runs nobody's code."""
        self.by_code: dict[int, Rule] = {}
        """Python functions by the id of their code (which they keep alive): what a profile hook sees of them."""
        self._by_id: dict[int, tuple[object, Rule]] = {}
        """All others. The objects are kept, so that no id is used again."""
        self._pending: dict[str, list[_Family]] = {}
        for family in _FAMILIES:
            self._pending.setdefault(family.module, []).append(family)

    @property
    def pending(self) -> frozenset[str]:
        """Modules with rules that were not loaded yet."""
        return frozenset(self._pending)

    def refresh(self) -> None:
        """Look up the rules of modules that have been loaded meanwhile."""
        for name in [name for name in self._pending if name in sys.modules]:
            module = sys.modules[name]
            if getattr(getattr(module, "__spec__", None), "_initializing", False):
                continue  # half imported: half of its names would be missed for good
            for family in self._pending.pop(name):
                self._look_up(module, family)

    def _look_up(self, module: object, family: _Family) -> None:
        for dotted in family.names.split():
            target: object = module
            for part in dotted.split("."):
                target = getattr(target, part, None)
            if target is not None:
                last = dotted.rpartition(".")[2]
                shown = family.module.replace("builtins", "").lstrip(".")
                name = (f"{shown}.{dotted}" if shown else dotted).removesuffix(".__init__")
                instead = family.instead.replace("{name}", last)
                self.add(target, Rule(name, family.why, instead, family.when, family.hooked))

    def add(self, target: object, rule: Rule) -> None:
        if _hash_is_ours(target):
            self.by_object.setdefault(target, rule)
        else:
            self._by_id.setdefault(id(target), (target, rule))
        if isinstance(target, FunctionType):  # not for a bound method: its code serves other objects too
            self.by_code.setdefault(id(target.__code__), rule)

    def named(self, rule: Rule, owner: object) -> Rule:
        """The methods of the generator behind `random`'s functions are better known as those functions."""
        chance = sys.modules.get("random")
        if rule.when is When.SHARED and chance is not None and owner is getattr(chance, "_inst", None):
            return self.find(getattr(chance, rule.name.rpartition(".")[2], None)) or rule
        return rule

    def find(self, callee: object) -> Rule | None:
        """The rule for a callable, whatever it is wrapped in. Runs no code of the user's."""
        kind = type(callee)
        if kind is BuiltinFunctionType:
            return self.by_object.get(callee) or self._find_bound(callee)
        if _hash_is_ours(callee):
            return self.by_object.get(callee)
        entry = self._by_id.get(id(callee))
        if entry is not None:
            return entry[1]
        if isinstance(callee, MethodType):
            return self.find(callee.__func__)
        return None

    def _find_bound(self, callee: object) -> Rule | None:
        """`now` of a subclass of datetime; a C method of some generator."""
        owner: object = getattr(callee, "__self__", None)
        name: str = getattr(callee, "__name__", "")
        if isinstance(owner, type):
            if name in CLOCK_METHODS:
                clock = sys.modules.get("datetime")
                if clock is not None and issubclass(owner, clock.date):
                    return self.by_object.get(getattr(clock.datetime if name != "today" else clock.date, name))
        elif name in ("random", "getrandbits"):
            chance = sys.modules.get("random")
            if chance is not None and isinstance(owner, chance.Random):
                return self.by_object.get(getattr(chance.Random, name))
        return None


def _hash_is_ours(target: object) -> bool:
    kind = type(target)
    return kind in _HASHED_BY_IDENTITY or kind is BuiltinFunctionType or kind is type


forbidden = Forbidden()
