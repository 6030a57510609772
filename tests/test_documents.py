"""Every Python snippet of the README and the docs runs, as printed."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SNIPPET = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def snippets() -> list[object]:
    return [
        pytest.param(code, id=f"{page.name}-{number}")
        for page in PAGES
        for number, code in enumerate(SNIPPET.findall(page.read_text()), 1)
    ]


@pytest.mark.parametrize("code", snippets())
def test_a_snippet_runs_as_printed(code: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(code)
    environment = {**os.environ, "OUTLAST_URL": f"sqlite:///{tmp_path}/snippet.db"}
    done = subprocess.run(
        [sys.executable, program.name], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_the_readme_begins_with_the_ten_line_program() -> None:
    first = SNIPPET.findall((ROOT / "README.md").read_text())[0]
    statements = [line for line in first.splitlines() if line]
    assert len(statements) <= 14
    assert "outlast.run(order, 1, id=" in first
    ast.parse(first)


def test_every_module_says_what_it_is() -> None:
    for path in (ROOT / "src").rglob("*.py"):
        text = path.read_text()
        assert not text or ast.get_docstring(ast.parse(text)), f"{path} has no docstring"


def test_links_between_the_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
