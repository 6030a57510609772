"""Type checkers see what users wrote: right code is accepted without a plugin, promised mistakes are reported.

The files beside this one are checked, not run. Each line with `# E:` is a mistake that must be found; with
`# E mypy:` or `# E pyright:` only by that one, where the two report the same mistake at different lines.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import outlast

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
FILES = [HERE / "workflow_code.py", HERE / "client_code.py"]
SOURCE = Path(outlast.__file__).parent.parent


def compare(checker: str, file: Path, reported: dict[int, str]) -> None:
    marks = ("  # E: ", f"  # E {checker}: ")
    lines = file.read_text().splitlines()
    promised = {number for number, line in enumerate(lines, 1) if any(mark in line for mark in marks)}
    assert promised, f"{file.name} promises no error at all"
    unexpected = [f"{file.name}:{line}: {reported[line]}" for line in sorted(set(reported) - promised)]
    missed = [f"{file.name}:{line}: not reported" for line in sorted(promised - set(reported))]
    assert unexpected + missed == []


@pytest.mark.skipif(find_spec("mypy") is None, reason="mypy is not installed")
def test_mypy_reports_the_planted_mistakes_and_nothing_else() -> None:
    options = ["--strict", "--warn-unreachable", "--follow-imports=silent", "--no-pretty", "--no-error-summary"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file=", *options, *map(str, FILES)],
        env={**os.environ, "MYPYPATH": str(SOURCE)},
        cwd=SOURCE.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    for file in FILES:
        lines = re.findall(rf"^.*{file.name}:(\d+): error: (.*)$", done.stdout, re.MULTILINE)
        compare("mypy", file, {int(line): text for line, text in lines})


@pytest.mark.skipif(find_spec("pyright") is None, reason="pyright is not installed")
def test_pyright_reports_the_planted_mistakes_and_nothing_else(tmp_path: Path) -> None:
    for file in FILES:
        shutil.copy(file, tmp_path)  # a pyright project has its files below it
    project = {"extraPaths": [str(SOURCE)], "typeCheckingMode": "strict"}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(project))
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", f"--pythonpath={sys.executable}", f"--project={tmp_path}"],
        capture_output=True,
        text=True,
    )
    report = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"] == len(FILES), done.stdout
    for file in FILES:
        found = [each for each in report["generalDiagnostics"] if Path(each["file"]).name == file.name]
        compare("pyright", file, {each["range"]["start"]["line"] + 1: each["message"] for each in found})
