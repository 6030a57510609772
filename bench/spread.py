"""A cell of Outlast that several processes share: `python -m bench.spread`, started by `cells.py`.

Each process is a client and a worker and has its share of the lanes, as in a web application that hosts its own
workflows: it starts runs, hosts them, and waits for their results. They warm up, begin at the same moment, and their
latencies are put together here. This process does nothing meanwhile; then it checks what the database holds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
from dataclasses import asdict
from pathlib import Path

from bench.journals import check_journal, journal_bytes
from bench.load import Measured, Setting, Share, measured
from bench.outlast_driver import url_of
from bench.processes import module, results_together

MARGIN_S = 120.0
"""Beyond the time asked for."""


def share_out(runs: int, processes: int) -> list[int]:
    """How many lanes each process gets. None gets nothing: with fewer runs than processes, some processes stay away."""
    each, more = divmod(runs, processes)
    return [each + 1] * more + [each] * (processes - more if each else 0)


def measure_spread(given: argparse.Namespace) -> Measured:
    setting = Setting(given.folder, given.runs, given.url, given.server_pid)
    argvs = [
        module(
            "bench.outlast_driver",
            *("--runs", lanes, "--activities", given.activities, "--seconds", given.seconds),
            *("--warmup", given.warmup, "--folder", given.folder, "--share", number),
            *(("--url", given.url) if given.url else ()),
        )
        for number, lanes in enumerate(share_out(given.runs, given.processes))
    ]
    server_cpu_s: list[float] = []
    timeout_s = given.seconds + given.warmup + MARGIN_S
    results = results_together(argvs, timeout_s=timeout_s, began=lambda: server_cpu_s.append(setting.server_cpu_s()))
    server_cpu_s.append(setting.server_cpu_s())
    whole = measured([Share(**each) for each in results], given.activities, server_cpu_s[1] - server_cpu_s[0])
    url = url_of(setting)
    asyncio.run(check_journal(url, whole.runs_in_all, given.activities))
    whole.notes["bytes per commit"] = asyncio.run(journal_bytes(url))
    whole.notes["processes"] = str(len(argvs))
    return whole


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="One cell of the benchmark; started by `python -m bench`.")
    for name in ("--runs", "--activities", "--processes"):
        parser.add_argument(name, type=int, required=True)
    for name in ("--seconds", "--warmup"):
        parser.add_argument(name, type=float, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--url")
    parser.add_argument("--server-pid", type=int)
    # SIGTERM unwinds like Ctrl-C, so that no child is left behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    print(json.dumps(asdict(measure_spread(parser.parse_args()))), flush=True)
