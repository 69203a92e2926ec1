"""The repository keeps its own rules: notebooks, dependencies, files."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(ROOT.glob("notebooks/[0-9]*.ipynb"))
PASSED_OVER = {".git", ".venv", "build", "__pycache__", ".ipynb_checkpoints", ".pytest_cache", ".ruff_cache"}
TEXT = {".py", ".md", ".toml", ".txt", ".yml", ".yaml", ".ipynb", ".json", ".html", ".cfg", ""}
MB = 1_000_000


def project_files() -> Iterator[Path]:
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [f for f in folders if f not in PASSED_OVER and not f.endswith(".egg-info")]
        yield from (Path(folder, name) for name in names if not name.endswith(".tmp"))


def notebook_faults(cells: list[dict]) -> list[str]:
    """A cell of code without a sentence before it, or with a definition; `make check` sees outputs and parameters."""
    faults = []
    for before, cell in zip([None, *cells], cells, strict=False):
        if cell["cell_type"] == "code":
            if before is None or before["cell_type"] != "markdown":
                faults.append("code without a sentence before it")
            nodes = ast.walk(ast.parse("".join(cell["source"])))
            if any(isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda) for node in nodes):
                faults.append("a definition")
    return faults


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_have_their_form(path):
    assert notebook_faults(json.loads(path.read_text())["cells"]) == []


def test_every_dependency_earns_its_line():
    text = (ROOT / "pyproject.toml").read_text()
    blocks = re.findall(r"^(?:dependencies|dev) = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert len(blocks) == 2
    assert len(lines) > 10
    assert [line for line in lines if not re.fullmatch(r'  "[^"]+",\s+# \S.{4,}', line)] == []


def test_pins_are_versions_or_ranges_that_any_machine_can_install():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+(==[\w.]+|>=[\d.]+,<[\d.]+)", line)] == []
    assert {"transformers", "flash-linear-attention", "numpy", "pandas", "pytest", "ruff"} <= pinned
    assert not {"torch", "triton"} & pinned


def test_conda_installs_the_same_project():
    packages = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"][-1]["pip"]
    assert packages == ["--constraint constraints.txt", "--editable .[dev]"]


def test_a_wheel_holds_all_and_reads_models_by_their_path_from_any_folder(tmp_path):
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "srdyn", tmp_path / "srdyn", ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools import build_meta; build_meta.build_wheel('.')"
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path, capture_output=True, check=True)
    [wheel] = tmp_path.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("srdyn/")}
    assert packed == {path.relative_to(tmp_path).as_posix() for path in (tmp_path / "srdyn").rglob("*.*")}
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    env = {name: value for name, value in os.environ.items() if name != "SRDYN_ROOT"}
    run = [sys.executable, "-m", "srdyn.plan", str(ROOT / "data/models/hybrid")]
    env |= {"PYTHONPATH": str(tmp_path / "installed")}
    (tmp_path / "elsewhere").mkdir()
    done = subprocess.run(run, cwd=tmp_path / "elsewhere", env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "hybrid (qwen3_next)" in done.stdout


def test_no_registry_host_and_no_place_of_one_machine_is_written():
    host = (
        r"://[^/\s]*(pypi|pythonhosted|conda\.anaconda|deb\.debian|npmjs)|--(extra-)?index-url|--find-links|file:"
        + "//"
    )
    place = r"(?<![\w.~])/(root|home|opt|Users)/\w"
    texts = [path for path in project_files() if path.suffix in TEXT and path != Path(__file__)]
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in texts
        if (match := re.search(f"{host}|{place}", path.read_text(encoding="utf-8", errors="replace")))
    ]
    assert len(texts) > 10
    assert found == []


def test_the_repository_stays_small():
    sizes = {path.relative_to(ROOT): path.stat().st_size for path in project_files()}
    assert {str(path): size for path, size in sizes.items() if size > 25 * MB} == {}
    assert sum(size for path, size in sizes.items() if path.parts[0] == "data") <= 150 * MB


def test_every_change_is_checked_tried_and_verified():
    asked = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())["jobs"]["tests"]["steps"]
    words = {word for step in asked for word in step.get("run", "").split()}
    assert {"check", "test", "smoke", "verify"} <= words


def test_what_is_published_is_what_was_made():
    workflow = yaml.safe_load((ROOT / ".github/workflows/pages.yml").read_text())
    steps = workflow["jobs"]["site"]["steps"]
    used = [step["uses"].split("@")[0] if "uses" in step else step["run"].split(" ")[:2] for step in steps]
    assert used[2:] == [["make", "reproduce"], "actions/upload-pages-artifact", "actions/deploy-pages"]
    assert steps[3]["with"]["path"] == "build/site"
    assert workflow["permissions"] == {"contents": "read", "pages": "write", "id-token": "write"}


def test_the_licence_is_there_in_full():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


VERDICT = r'\b(C\d+|Thm 3\.1|Eq\. 13)\b[^.|\n"]*\b(reproduced|inconclusive|not testable|pass(es)?|fails?|holds?)\b'


def typed_verdicts(text: str) -> list[str]:
    """Verdicts on named claims outside the generated block."""
    outside = re.sub(r"<!-- (headline|scorecard|families):begin -->.*?<!-- \1:end -->", "", text, flags=re.DOTALL)
    return [match[0] for match in re.finditer(VERDICT, outside)]


def test_no_verdict_is_typed_by_hand():
    texts = {
        path.name: path.read_text() for path in [*NOTEBOOKS, ROOT / "README.md", *ROOT.glob("notebooks/site/*.md")]
    }
    assert {name: found for name, text in texts.items() if (found := typed_verdicts(text))} == {}
    assert typed_verdicts("So C1 is not reproduced in the hybrid.") == ["C1 is not reproduced"]
    assert typed_verdicts("<!-- scorecard:begin -->\nC1 fails\n<!-- scorecard:end -->") == []


@pytest.mark.parametrize("source", ["def f():\n    return 1", "f = lambda: 1"])
def test_a_fault_in_a_notebook_is_seen(source):
    text, code = {"cell_type": "markdown"}, {"cell_type": "code", "source": ["x = 1"]}
    assert notebook_faults([text, code, text, code]) == []
    assert notebook_faults([text, code, text, code | {"source": [source]}]) == ["a definition"]
    assert notebook_faults([text, code, code]) == ["code without a sentence before it"]
