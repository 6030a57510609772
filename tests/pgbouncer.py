"""A PgBouncer in front of the tests' PostgreSQL, in transaction mode: started at the first question for it, and ended
with the process that asked, however that ends.

Its pool is smaller than the number of connections that two stores have, so that they really get each other's sessions.
"""

from __future__ import annotations

import atexit
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import postgres
from postgres_keeper import PORTS, unprivileged

POOL_SIZE = 3

STARTED_WITHIN_S = 30.0

# Ends the pooler when this process does: then the pipe to its stdin is closed.
KEEP = """
import os, subprocess, sys
owner, *command = sys.argv[1:]
identity = dict(zip(("user", "group"), map(int, owner.split(":")))) if owner else {}
pooler = subprocess.Popen(command, **identity)
sys.stdin.read()
pooler.kill()
pooler.wait()
"""

SETTINGS = """
[databases]
* = host={host} port={server_port} user={role}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {pool_size}
max_client_conn = 200
logfile = {log}
"""


class NoPooler(postgres.NoPostgres):
    """There is no PgBouncer to test with."""


def pooled(url: str) -> str:
    """The URL of the same database behind the pooler. Raises NoPostgres."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"postgres@127.0.0.1:{_port()}"))


@cache
def _port() -> int:
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        raise NoPooler("there is no PgBouncer to test with: apt-get install pgbouncer")
    server = urlsplit(postgres.server_url())
    folder = Path(tempfile.mkdtemp(prefix="outlast-pgbouncer-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    owner = unprivileged()  # like PostgreSQL, it refuses to run as root
    if owner is not None:
        os.chown(folder, owner.pw_uid, owner.pw_gid)
    deadline = time.monotonic() + STARTED_WITHIN_S
    while time.monotonic() < deadline:
        port = random.choice(PORTS)
        settings = folder / "pgbouncer.ini"
        settings.write_text(
            SETTINGS.format(
                host=server.hostname, server_port=server.port, role=server.username, port=port, pool_size=POOL_SIZE,
                log=folder / "log",
            )
        )  # fmt: skip
        settings.chmod(0o644)
        identity = "" if owner is None else f"{owner.pw_uid}:{owner.pw_gid}"
        keeper = subprocess.Popen(
            [sys.executable, "-I", "-c", KEEP, identity, program, "-q", str(settings)],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        assert keeper.stdin is not None
        atexit.register(keeper.wait)
        atexit.register(keeper.stdin.close)  # before waiting: the last that is registered comes first
        if _answers(port, folder / "log"):
            return port
        keeper.stdin.close()
    raise NoPooler(f"PgBouncer does not start: {(folder / 'log').read_text()[-1000:]}")


def _answers(port: int, log: Path) -> bool:
    """False: it could not have this port, or has ended for another reason."""
    deadline = time.monotonic() + STARTED_WITHIN_S
    while time.monotonic() < deadline:
        said = log.read_text() if log.exists() else ""
        if "process up" in said:
            with socket.create_connection(("127.0.0.1", port)):
                return True
        if "FATAL" in said or "Address already in use" in said:
            log.unlink()
            return False
        time.sleep(0.01)
    return False
