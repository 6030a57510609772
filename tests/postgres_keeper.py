"""A process that keeps one PostgreSQL server for tests, and ends it, and its files, when whoever started it has ended.

Run as a program by `postgres.py`: `python postgres_keeper.py PROGRAMS [name=value ...]`, with PostgreSQL's settings. It
says `up PORT PID` or `failed REASON` on its stdout, and takes orders on its stdin, one a line: `stop fast`,
`stop immediate`, `start`. When its stdin ends, the server is killed and its folder removed: the end of a pipe is the
one sign of a parent's death that no `kill -9` prevents.

PostgreSQL refuses to run as root; then it runs as the first of UNPRIVILEGED that there is.
"""

from __future__ import annotations

import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

UNPRIVILEGED = ("postgres", "nobody")

PORTS = range(20_000, 32_000)
"""Below those from which the kernel takes the ports of outgoing connections: a restart needs the same port again."""

STARTED_WITHIN_S = 60.0


class Failed(Exception):
    pass


class Keeper:
    def __init__(self, programs: Path, settings: list[str], folder: Path) -> None:
        self._settings = settings
        self._folder = folder
        self._data = folder / "data"
        self._log = folder / "log"
        owner = unprivileged()
        self._as_owner: dict[str, Any] = {"cwd": "/", "stdin": subprocess.DEVNULL, "start_new_session": True}
        self._data.mkdir(mode=0o700)
        if owner is not None:
            self._as_owner |= {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
            folder.chmod(0o711)
            os.chown(self._data, owner.pw_uid, owner.pw_gid)
        self._programs = self._reachable(programs)
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None

    def _reachable(self, programs: Path) -> Path:
        """The programs; a copy of them if the user who is to run them cannot come to them."""
        try:
            subprocess.run(
                [programs / "postgres", "--version"], **self._as_owner, stdout=subprocess.DEVNULL, check=True
            )
        except PermissionError:
            installed = programs.parent
            copy = self._folder / "package" / installed.name
            shutil.copytree(installed, copy, symlinks=True)
            # Where the package from PyPI has the libraries that are not the system's; found from the programs' place.
            libraries = installed.parent.parent / f"{installed.parent.name}.libs"
            if libraries.is_dir():
                shutil.copytree(libraries, self._folder / libraries.name, symlinks=True)
            return copy / programs.name
        return programs

    def create(self) -> None:
        created = subprocess.run(
            [self._programs / "initdb", "-D", self._data, "-U", "postgres", "--auth=trust", "--encoding=UTF8",
             "--locale=C.UTF-8", "--no-sync"],
            **self._as_owner, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if created.returncode != 0:
            raise Failed(f"initdb ended with code {created.returncode}: {created.stderr[-2000:]}")
        for _ in range(20):
            self._port = _free_port()
            try:
                self.start()
                return
            except Failed:
                if "Address already in use" not in self._log.read_text(errors="replace"):
                    raise
        raise Failed("no free port was found")

    def start(self) -> None:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self._data, "-c", f"port={self._port}",
                 "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=",
                 *[word for setting in self._settings for word in ("-c", setting)]],
                **self._as_owner, stdout=log, stderr=log,
            )  # fmt: skip
        # The server's own word: the last line of this file.
        status = self._data / "postmaster.pid"
        deadline = time.monotonic() + STARTED_WITHIN_S
        while self._process.poll() is None and time.monotonic() < deadline:
            if status.exists():
                lines = status.read_text().split("\n")
                if lines[0] == str(self._process.pid) and len(lines) > 7 and lines[7].strip() == "ready":
                    return
            time.sleep(0.01)
        raise Failed(f"PostgreSQL does not start: {self._log.read_text(errors='replace')[-2000:]}")

    def stop(self, mode: str) -> None:
        """`fast`: cuts all connections and shuts down in order; `immediate`: as in a crash."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT if mode == "fast" else signal.SIGQUIT)
            self._process.wait(STARTED_WITHIN_S)
            self._process = None

    def up(self) -> str:
        assert self._process is not None
        return f"up {self._port} {self._process.pid}"


def unprivileged() -> pwd.struct_passwd | None:
    if os.geteuid() != 0:
        return None
    for name in UNPRIVILEGED:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise Failed(f"PostgreSQL does not run as root, and there is no user {' or '.join(UNPRIVILEGED)}")


def _free_port() -> int:
    while True:
        port = random.choice(PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def _serve(keeper: Keeper) -> None:
    keeper.create()
    print(keeper.up(), flush=True)
    for line in sys.stdin:
        match line.split():
            case ["stop", mode]:
                keeper.stop(mode)
                print("down", flush=True)
            case ["start"]:
                keeper.start()
                print(keeper.up(), flush=True)
            case _:
                raise AssertionError(f"no such order: {line!r}")


def _end(signal_number: int, frame: object) -> None:
    sys.exit(0)


def main() -> None:
    # An interrupted test session tears its tests down first, and those need the server.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)
    folder = Path(tempfile.mkdtemp(prefix="outlast-postgres-"))
    keeper = None
    try:
        keeper = Keeper(Path(sys.argv[1]), sys.argv[2:], folder)
        _serve(keeper)
    except Failed as error:
        print(f"failed {error}".replace("\n", " "), flush=True)
    finally:
        if keeper is not None:
            keeper.stop("immediate")
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
