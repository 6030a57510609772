"""The PostgreSQL of the tests itself: it is gone, with its files, when whoever started it is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import postgres

PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has it ignored in what it starts with &
sys.path.insert(0, sys.argv[1])
import postgres
url = postgres.fresh_database(migrated=False)
server = postgres._own()
print(server.pid, postgres.ask(url, lambda db: db.fetchval("SHOW data_directory")), flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_server_ends_with_its_process_however_that_ends(how: signal.Signals) -> None:
    postgres.require(postgres.server_url)
    if "://" in os.environ.get(postgres.CHOSEN, ""):
        pytest.skip(f"{postgres.CHOSEN} names a server that is not started by tests")
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(Path(__file__).parent)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        assert process.stdout is not None
        pid, folder = process.stdout.readline().split()
        assert _runs(int(pid))
        assert Path(folder).is_dir()

        process.send_signal(how)
        process.wait(30)

    deadline = time.monotonic() + 30
    while _runs(int(pid)) or Path(folder).parent.exists():
        assert time.monotonic() < deadline, f"{pid} or {folder} is still there"
        time.sleep(0.01)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
