"""The README and the pages of docs/: their Python runs, prints what they say, and the pages build without warnings."""

import contextlib
import importlib.util
import io
import re
import subprocess
import sys

import pytest
from conftest import ROOT


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"[-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?")


def blocks(page):
    """[(code, printed)] of a page; printed is None where the page shows no output."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    pairs = []
    for i, (language, text) in enumerate(found):
        if language == "python":
            after = found[i + 1] if i + 1 < len(found) else ("", "")
            pairs.append((text, after[1] if after[0] == "text" else None))
    return pairs


def assert_like(printed, shown):
    """The same words, and numbers that agree to three digits; how many steps were taken is not promised."""
    keep = lambda text: [line for line in text.splitlines() if line.strip() and not line.startswith("Converged")]
    for found, wanted in zip(keep(printed), keep(shown), strict=True):
        assert NUMBER.sub("#", found).split() == NUMBER.sub("#", wanted).split()
        numbers = [[float(v.replace(",", "")) for v in NUMBER.findall(line)] for line in (found, wanted)]
        assert numbers[0] == pytest.approx(numbers[1], rel=2e-3, abs=1e-6), (found, wanted)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda page: page.name)
def test_the_python_of_a_page_runs_and_prints_what_it_shows(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for code, shown in blocks(page):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(code, page.name, "exec"), names)
        if shown is not None:
            assert_like(out.getvalue(), shown)


def test_the_readme_gives_the_two_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "pip install -e . && jaxglmm demo" in text
    assert "pip install -e '.[test]' && python -m pytest" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_command_line_page_lists_every_option():
    from jaxglmm.cli import parser

    text = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    commands = next(dict(action.choices or {}) for action in parser()._actions if action.dest == "command")
    for name, command in commands.items():
        assert f"jaxglmm {name}" in text
        for action in command._actions:
            for option in action.option_strings:
                assert option in ("-h", "--help") or option in text, (name, option)


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not installed: pip install '.[docs]'")
def test_the_pages_build_without_warnings(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
