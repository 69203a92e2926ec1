"""README and pages: short, linked to what is there, every command and every line of Python in them works."""

import ast
import html
import importlib.util
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from urllib import parse

import pandas as pd
import pytest
import yaml

import srdyn
from srdyn import architectures, contexts, models, plan, scores
from srdyn.loading import files
from srdyn.study import reproduce
from srdyn.study.run import parameters

ROOT = files.root()
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("notebooks/site/*.md")), ROOT / "CONTRIBUTING.md"]
TARGETS = re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
ELSEWHERE = {"harness", "AutoModelForCausalLM"}
"""What examples import that need an optional extra, the hub, or a process of their own; other tests run these."""


def blocks(text: str, *languages: str) -> list[str]:
    """What stands between fences that name one of these languages; fences come in pairs."""
    found = re.findall(r"^```(.*?)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [inside for language, inside in found if language in languages]


def commands(text: str) -> list[str]:
    """Every command of a page: lines of plain blocks, and what stands in `backticks` and begins like one."""
    lines = [line for block in blocks(text, "", "sh") for line in block.splitlines()]
    inline = re.findall(r"`((?:make|python -m|pip install|conda env) [^`]+)`", re.sub(r"\n", " ", text))
    return [line for line in lines + inline if line.split(" ")[0] in KNOWN]


def check_make(words: list[str]) -> None:
    given = dict(word.split("=", 1) for word in words[1:] if "=" in word)
    named = [word for word in words[1:] if "=" not in word]
    assert set(named) <= set(TARGETS)
    assert given.keys() <= {"P", "PRESET", "ONLY", "ARGS", "PY", "PYTHON"}
    stems = given.get("ONLY", "").split() or reproduce._every()
    parameters.of_run(stems, given.get("PRESET", "reference"), parameters.parsed(given.get("P", "")))
    tests = [word for word in given.get("ARGS", "").split() if word.startswith("tests/")]
    assert [path for path in tests if not (ROOT / path).exists()] == []


def check_module(words: list[str]) -> None:
    module, rest = words[words.index("-m") + 1], words[words.index("-m") + 2 :]
    assert importlib.util.find_spec(module)
    if module == "srdyn.study.survey":
        preset = [word for word in rest if "=" not in word] or ["reference"]
        given = parameters.parsed(" ".join(word for word in rest if "=" in word))
        parameters.of_run(["01_stratification"], preset[0], given)
    elif module == "srdyn.plan" and rest != ["NAME"]:
        name, known = rest[0], ROOT / "data/geometry" / Path(rest[0]).name
        preset = (ROOT / f"notebooks/presets/{name}.yaml").exists()
        assert plan.of_preset(name) if preset else models.check(known if known.is_dir() else name)


def check_pip(words: list[str]) -> None:
    extras = re.findall(r"\.\[(\w+)\]", " ".join(words))
    assert all(f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text() for extra in extras)


def check_place(words: list[str]) -> None:
    assert (ROOT / words[-1]).exists()


KNOWN = {"make": check_make, "python": check_module, "torchrun": check_module, "pip": check_pip}
KNOWN |= {"accelerate": check_module, "conda": check_place, "ls": check_place}


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A clone of data and presets, from whose root pages are run; what they register is forgotten."""
    for path in [*(ROOT / "data").iterdir(), ROOT / "notebooks"]:
        (tmp_path / path.relative_to(ROOT)).parent.mkdir(exist_ok=True)
        if path.name != "paper":
            (tmp_path / path.relative_to(ROOT)).symlink_to(path)
    shutil.copytree(ROOT / "data/paper", tmp_path / "data/paper")
    monkeypatch.setenv("SRDYN_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(architectures, "_RECIPES", dict(architectures._RECIPES))
    monkeypatch.setattr(scores, "RULES", dict(scores.RULES))
    return tmp_path


@pytest.fixture
def everything(clone):
    """The environment of commands that need all of a clone, which it is then."""
    for name in ("README.md", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "figures", "srdyn", "constraints.txt"):
        (clone / name).symlink_to(ROOT / name)
    return os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}


def leading_nowhere(pages: dict[str, str], site: Path) -> list[str]:
    """Links within the site to a file that is not there, or to a place that the page does not have."""
    places = {name: set(re.findall(r'\bid="([^"]+)"', text)) for name, text in pages.items()}
    found = []
    for name, text in pages.items():
        for link in re.findall(r'<(?:a|img|link|script)\b[^>]*?\b(?:href|src)="([^"]*)"', text):
            path, _, anchor = parse.unquote(html.unescape(link)).partition("#")
            target = os.path.normpath(Path(name).parent / path.split("?")[0]) if path else name
            there = parse.urlsplit(path).scheme or (site / target).exists()
            if not there or (anchor and target in places and anchor not in places[target]):
                found.append(f"{name}: {link}")
    return found


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert len(text) <= 12_000


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_command_is_one(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for line in commands(path.read_text()):
        words = shlex.split(line, comments=True)
        KNOWN[words[0]](words)


def test_a_wrong_command_is_seen(monkeypatch):
    monkeypatch.chdir(ROOT)
    wrong = ["make reprodce", 'make reproduce P="epss=1"', 'make reproduce ONLY="01_first"', "python -m srdyn.plans x"]
    wrong += ["torchrun -m srdyn.study.survey smok", "pip install -e '.[x]'", "ls there"]
    assert commands("```\n" + "\n".join(wrong) + "\n```\nand `make it`\n") == [*wrong, "make it"]
    for line in [*wrong, "make it"]:
        with pytest.raises((AssertionError, ValueError)):
            KNOWN[line.split()[0]](shlex.split(line))


@pytest.mark.parametrize("path", [p for p in PAGES if blocks(p.read_text(), "python")], ids=lambda path: path.stem)
def test_every_line_of_python_runs(path, clone):
    text = path.read_text()
    for claim in blocks(text, "yaml"):
        with (clone / "data/paper/claims.yaml").open("a") as file:
            file.write(claim)
    space = {"__name__": "page"}
    for source in blocks(text, "python"):
        imported = {name.name for node in ast.walk(ast.parse(source)) for name in getattr(node, "names", ())}
        if not imported & ELSEWHERE:
            exec(compile(source, path.name, "exec"), space)
    if path.stem == "extend":
        assert space["ranks"].shape == (2, 1, 2, 8)
        assert space["verdict"] == "reproduced"
        assert (clone / "build/interactive/tables/09_name_heads.csv").is_file()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_link_leads_somewhere_and_every_table_that_is_named_is_there(path):
    links = re.findall(r"\]\(([^)\s#]+)", re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL))
    inside = [link for link in links if "://" not in link]
    assert [link for link in inside if not (path.parent / link).exists()] == []
    named = re.findall(r"`((?:(?:thorough|main)/)?\d\d_[a-z]\w+)`", path.read_text())
    kept = [ROOT / "data/tables", ROOT / "notebooks"]
    assert [name for name in named if not any([*folder.glob(f"{name}.*")] for folder in kept)] == []


def test_the_commands_of_the_readme_begin(monkeypatch, capsys):
    """Those of Python in this process: test_project starts one of its own."""
    monkeypatch.chdir(ROOT)
    lines = [shlex.split(line, comments=True) for line in commands((ROOT / "README.md").read_text())]
    began = [words for words in lines if words[0] in ("make", "python")]
    assert len(began) > 6
    for words in began:
        if words[0] == "make":
            done = subprocess.run(["make", "-n", f"PY={sys.executable}", *words[1:]], capture_output=True, text=True)
            assert (done.returncode, bool(done.stdout)) == (0, True), done.stderr
        else:
            monkeypatch.setattr(sys, "argv", words[words.index("-m") + 1 :])
            with pytest.raises(SystemExit) as left:
                importlib.import_module(sys.argv[0]).main()
            assert (left.value.code or 0, bool(capsys.readouterr().out)) == (0, True)


@pytest.mark.site
def test_a_stranger_s_model_and_text_end_in_a_figure_that_the_last_lines_name(clone, everything):
    shutil.copytree(ROOT / "data/models/hybrid-d32", clone / "mine/my model")
    (clone / "mine/my text.txt").write_text(contexts.held_out_documents("prose", part="trace")[0][:6000])
    [line] = [line for line in commands((ROOT / "README.md").read_text()) if "first-look" in line]
    line = line.replace("path/to/model", "mine/my model").replace("path/to/text.txt", "mine/my text.txt")
    words = ["make", "-f", str(ROOT / "Makefile"), f"PY={sys.executable}", *shlex.split(line)[1:]]
    done = subprocess.run(words, env=everything, cwd=clone, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    folder, names = re.search(r"^(build/first-look\S+): (.+); build", done.stdout, flags=re.MULTILINE).groups()
    assert all((clone / folder / name).is_file() for name in names.split(", "))
    assert "01_stratification_map.png" in names
    run = (clone / folder).parent
    assert set(pd.read_csv(run / "tables/01_stratification_heads.csv")["model"]) == {"my model"}
    record = json.loads((run / "records/01_stratification.json").read_text())
    assert record["parameters"]["domains"] == ["mine/my text.txt"]
    assert Path(re.search(r"^site: (.+) \(", done.stdout, flags=re.MULTILINE)[1]).is_file()


def test_the_citation_is_of_this_version():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == srdyn.__version__


@pytest.mark.site
def test_a_page_of_the_site_has_what_cells_say_and_no_progress_bar():
    build = runpy.run_path(ROOT / "notebooks/site/build.py")
    said = {"output_type": "stream", "name": "stdout", "text": ["rank 3\n"]}
    bars = [
        {"output_type": "display_data", "data": {build["WIDGET"]: {}, "text/plain": ["0it [00:00, ?it/s]"]}},
        {"output_type": "stream", "name": "stderr", "text": ["\r", "heads: 48%| | 31/64 [00:51<00:32, 1.03it/s]"]},
    ]
    cells = [{"cell_type": "code", "source": [], "outputs": [bars[0], said, bars[1]]}]
    page = json.loads(build["still"](json.dumps({"metadata": {}, "cells": cells}).encode()))
    assert page["cells"][0]["outputs"] == [said]


@pytest.mark.site
def test_the_site_builds_offline_without_a_warning_and_is_read_in_a_browser(clone, everything, visited):
    built = subprocess.run(
        [sys.executable, "notebooks/site/build.py"], env=everything, cwd=clone, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    site = clone / "build/site"
    assert (site / ".nojekyll").exists()  # without which GitHub leaves out _static where it serves a branch
    assert not list(site.rglob(".*/*.html"))  # which its upload leaves out
    found = [path for path in site.rglob("*.html") if "_static" not in path.parts]  # where the theme keeps a template
    pages = {path.relative_to(site).as_posix(): path.read_text() for path in found}
    assert {"index.html", "search.html", "notebooks/01_stratification.html", "notebooks/site/api/states.html"} <= set(
        pages
    )
    fetched = r'<(?:script|img|iframe)[^>]*src="https?:|<link[^>]*rel="stylesheet"[^>]*href="https?:'
    assert [name for name, text in pages.items() if re.search(fetched, text)] == []
    assert leading_nowhere(pages, site) == []
    assert "notebooks/03_ablation.html#c8" in pages["index.html"]
    assert "without outputs, since this run has not executed them" in built.stdout
    assert "<math" in pages["notebooks/01_stratification.html"]
    assert re.search(r'href="[^"]*05_mechanism_retention.csv"', pages["notebooks/site/findings.html"])
    for name in ("index", "notebooks/09_explore", "notebooks/site/your_model", "notebooks/site/api/states"):
        page = visited(site / f"{name}.html", width=390)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate("[...document.querySelectorAll('nav summary')].map(fold => fold.ariaLabel)") == [
            "Pages of API"
        ]
        assert page.locator(".search-button-field").first.get_attribute("aria-label") is None  # its text is its name
    page.goto((site / "search.html").as_uri() + "?q=effective+rank")
    page.locator("#search-results a").first.wait_for()
    titles = page.locator("#search-results").inner_text()
    assert "Glossary" in titles
