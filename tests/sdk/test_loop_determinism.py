"""Random programs do the same again when the same events are fed, whatever the heap, the hash seed and the process."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import outlast
from sdk.loop_programs import Node, draw_program, program
from sdk.loop_world import World

TESTS = Path(__file__).parent.parent
SOURCE = Path(outlast.__file__).parent.parent


class Noise:
    """Moves the heap about, so that addresses in the same place of two executions differ."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._junk: list[Any] = []

    def __call__(self) -> None:
        rng = self._random
        for _ in range(rng.randrange(20)):
            made: Any = (object, set, _junk, partial(bytearray, rng.randrange(600)))[rng.randrange(4)]()
            if hasattr(made, "close"):
                made.close()
            self._junk.append(made)
        rng.shuffle(self._junk)
        del self._junk[rng.randrange(20) :]
        if rng.randrange(40) == 0:
            gc.collect()


async def _junk() -> None: ...


def outcome(world: World, done: Any) -> str:
    if not done.done():
        return f"stuck at {world.loop.whereabouts()}"
    if done.cancelled():
        return "cancelled"
    return repr(done.exception()) if done.exception() is not None else repr(done.result())


def observed(world: World, proceed: Callable[[], Any], noise: int) -> tuple[Any, ...]:
    """Everything that could differ."""
    world.between_turns = Noise(noise)
    try:
        done = proceed()
        return outcome(world, done), world.commands[:], world.trace[:], world.events, world.loop.time()
    finally:
        world.loop.close()


def live(node: Node, pick: Any, noise: int) -> tuple[Any, ...]:
    world = World()
    return observed(world, lambda: world.live(program(node), pick, limit=2_000), noise)


def replayed(node: Node, events: Any, noise: int) -> tuple[Any, ...]:
    world = World()
    return observed(world, lambda: world.replay(program(node), events), noise)


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_replay_repeats_every_command_and_step_of_random_programs(data: st.DataObject) -> None:
    def pick(below: int) -> int:
        return data.draw(st.integers(0, below - 1))

    node = draw_program(pick)
    first = live(node, pick, noise=1)
    assert replayed(node, first[3], noise=2) == first
    assert replayed(node, first[3], noise=3) == first


@pytest.mark.parametrize("seed", range(60))
def test_replay_repeats_seeded_programs(seed: int) -> None:
    rng = random.Random(seed)
    node = draw_program(rng.randrange, depth=4)
    first = live(node, rng.randrange, noise=seed)
    assert replayed(node, first[3], noise=seed + 1) == first


DIGESTS = """
import json, random, sys
from sdk.test_loop_determinism import digests
print(json.dumps(digests(60)))
"""


def digests(count: int) -> list[str]:
    found: list[str] = []
    for seed in range(count):
        rng = random.Random(seed)
        node = draw_program(rng.randrange)
        seen = live(node, rng.randrange, noise=os.getpid() + seed)
        found.append(hashlib.sha256(repr(seen).encode()).hexdigest())
    return found


def pythons() -> list[str]:
    """This Python, and others on this machine that have what the loop needs."""
    found = {sys.version_info[:2]: sys.executable}
    for candidate in sorted(Path.home().glob(".pyenv/versions/3.*/bin/python")):
        probe = "import sys, greenlet, msgspec, pytest, hypothesis; print(*sys.version_info[:2])"
        answer = subprocess.run([str(candidate), "-c", probe], capture_output=True, text=True, check=False)
        if answer.returncode == 0:
            version = tuple(map(int, answer.stdout.split()))
            if version >= (3, 11):
                found.setdefault((version[0], version[1]), str(candidate))
    return list(found.values())


@pytest.mark.parametrize("python", pythons())
def test_processes_with_other_hash_seeds_do_the_same(python: str) -> None:
    started = [
        subprocess.Popen(
            [python, "-c", DIGESTS],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": f"{TESTS}{os.pathsep}{SOURCE}"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("0", "1", "4242")
    ]
    answers = [json.loads(process.communicate()[0]) for process in started]
    assert [len(answer) for answer in answers] == [60, 60, 60]
    assert answers[0] == answers[1] == answers[2]
