"""Bad input ends in one clear line on stderr and a status, never in a traceback."""

from __future__ import annotations

import sqlite3
import subprocess
from pathlib import Path

import pytest

from cli.recording import COMMAND, Call
from outlast.cli.main import COMMANDS

READERS = [("list",), ("show", "order-1"), ("history", "order-1"), ("tail", "order-1")]


def refused(called: tuple[int, str, str], *parts: str) -> None:
    status, out, err = called
    assert (status, out) == (2, "")
    assert err.startswith("outlast: error: ")
    assert err.count("\n") == 1
    for part in parts:
        assert part in err


@pytest.mark.parametrize("command", READERS, ids=lambda command: command[0])
def test_reading_makes_no_file_where_there_is_none(outlast: Call, tmp_path: Path, command: tuple[str, ...]) -> None:
    refused(outlast(*command), "no such file: outlast.db")
    refused(outlast(*command, "--db", "sqlite:///nowhere/x.db"), "there is no folder")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", READERS, ids=lambda command: command[0])
def test_a_file_that_is_something_else_is_refused_and_left_alone(
    outlast: Call, tmp_path: Path, command: tuple[str, ...]
) -> None:
    (tmp_path / "notes.db").write_text("this is not a database, however long it may be\n" * 50)
    with sqlite3.connect(tmp_path / "foreign.db") as foreign:
        foreign.execute("CREATE TABLE customers (id INTEGER)")
    foreign.close()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    refused(outlast(*command, "--db", "sqlite:///notes.db"), "notes.db")
    refused(outlast(*command, "--db", "sqlite:///foreign.db"), "foreign.db", "another program")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_database_of_a_newer_release_is_refused(outlast: Call, tmp_path: Path) -> None:
    (tmp_path / "orders.py").write_text(
        "from outlast import workflow\n\n@workflow\nasync def order() -> int:\n    return 7\n"
    )
    assert outlast("run", "orders.py:order", "--id", "x").status == 0
    with sqlite3.connect(tmp_path / "outlast.db") as db:
        db.execute("INSERT INTO schema_version VALUES (999, 999)")
    db.close()

    refused(outlast("list"), "schema version 999", "newer release")
    refused(outlast("run", "orders.py:order", "--id", "y"), "schema version 999")


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("orders.db", "is not a database URL"),
        ("sqlite://orders.db", "three slashes"),
        ("mysql://localhost/x", "is not a database URL"),
        ("sqlite:///x.db?synchronous=never", "synchronous"),
    ],
)
def test_a_bad_url_is_explained(outlast: Call, url: str, part: str) -> None:
    refused(outlast("list", "--db", url), part)


def test_the_database_may_be_named_by_the_environment(
    outlast: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTLAST_URL", "sqlite:///elsewhere.db")
    refused(outlast("list"), "no such file: elsewhere.db")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["lst"], "Did you mean 'list'?"),
        (
            ["xyz"],
            f"There are: {', '.join(COMMANDS)}.",
        ),
        (["show"], "Missing argument 'ID'. See `outlast show --help`."),
        (["list", "--status", "broken"], "'running', 'completed', 'failed', 'cancelled', 'terminated'"),
        (["list", "--limit", "0"], "--limit"),
        (["history", "x", "-o", "xml"], "xml"),
        (["worker"], "MODULE_OR_FILE"),
        (["demo", "--db", "sqlite:///x.db"], "a database of its own"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_call_says_what_is_wrong(outlast: Call, arguments: list[str], part: str) -> None:
    refused(outlast(*arguments), part)


def test_with_debug_the_traceback_is_shown_too(outlast: Call) -> None:
    for arguments in (["--debug", "list"], ["list", "--debug"]):
        status, _, err = outlast(*arguments)
        assert status == 2
        assert err.startswith("Traceback (most recent call last):\n")
        assert err.splitlines()[-1].startswith("outlast: error: no such file")


def test_help_and_version_are_printed(outlast: Call) -> None:
    status, out, err = outlast("--help")
    assert (status, err) == (0, "")
    for command in COMMANDS:
        assert f"\n  {command} " in out
        status, out_of_command, err = outlast(command, "--help")
        assert (status, err) == (0, "")
        assert "--db URL" in out_of_command
    assert outlast() == outlast("--help")
    assert outlast("--version").out.startswith("outlast ")


def test_a_terminal_without_arrows_gets_question_marks_instead_of_a_traceback(tmp_path: Path) -> None:
    environment = {"PYTHONIOENCODING": "ascii", "PATH": "/usr/bin"}
    done = subprocess.run(
        [*COMMAND, "show", "réservation"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("outlast: error: no such file")
