"""How long it takes to begin: `import outlast` over bare Python, and the command `outlast list`."""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import outlast
from bench.limits import Scale, place
from bench.limits.app import HOSTED
from bench.outlast_driver import chain
from bench.postgres import Server
from bench.processes import ROOT, ChildFailed, module, result_of
from bench.verdicts import Verdict

TARGET_IMPORT_MS = 100.0
TARGET_LIST_MS = 300.0


def measure(folder: Path, scale: Scale, server: Server | None) -> list[Verdict]:
    url = place(folder, "list", server)
    result_of(module("bench.limits.startup", url, scale.listed), timeout_s=300)
    bare_ms, import_ms, list_ms = [], [], []
    for _ in range(scale.repeats):
        bare_ms.append(_timed_ms([sys.executable, "-c", "pass"], ""))
        import_ms.append(_timed_ms([sys.executable, "-c", "import outlast"], ""))
        list_ms.append(_timed_ms([*_command(), "list", "--db", url], "chain"))
    over_ms = statistics.median(import_ms) - statistics.median(bare_ms)
    listed_ms = statistics.median(list_ms)
    return [
        Verdict(
            "import outlast, over bare Python",
            f"under {TARGET_IMPORT_MS:.0f} ms",
            f"{over_ms:.0f} ms",
            over_ms < TARGET_IMPORT_MS,
        ),
        Verdict(
            f"outlast list, of {scale.listed:,} runs",
            f"under {TARGET_LIST_MS:.0f} ms",
            f"{listed_ms:.0f} ms",
            listed_ms < TARGET_LIST_MS,
        ),
    ]


def _command() -> list[str]:
    """The installed command; where it is not installed, its module."""
    script = Path(sys.executable).with_name("outlast")
    return [str(script)] if script.exists() else module("outlast.cli.main")


def _timed_ms(argv: Sequence[str], says: str) -> float:
    """How long the command took. Raises ChildFailed if it ends with an error, or does not say what it should."""
    began = time.perf_counter()
    done = subprocess.run(argv, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    elapsed_ms = (time.perf_counter() - began) * 1e3
    if done.returncode != 0 or says not in done.stdout:
        raise ChildFailed(
            f"{' '.join(argv)} ended with code {done.returncode}: {done.stdout[-500:]}{done.stderr[-1500:]}"
        )
    return elapsed_ms


async def _fill(url: str, runs: int) -> bool:
    async with outlast.connect(url) as client:
        async with client.worker(*HOSTED):
            await asyncio.gather(*(client.execute(chain, 1, id=f"list-{number}") for number in range(runs)))
    return True


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_fill(sys.argv[1], int(sys.argv[2])))))
