"""Builds the site of a run, offline: `python notebooks/site/build.py [--preset … --set "…"]`, as `make site` does.

README, pages, notebooks and figures are gathered in build/<run>/site-source as they lie in the repository, so that
their links hold; Sphinx makes build/site of the reference run's, build/<run>/site of any other's. Notebooks are those
that the run executed, else the sources; nothing is run.
"""

import argparse
import functools
import json
import os
import re
from pathlib import Path

from sphinx.cmd import build

from srdyn.loading import files
from srdyn.study import reproduce
from srdyn.study.run import store

SHOWN = ("notebooks/site/*.md", "data/README.md", "data/models/README.md", "CHANGELOG.md", "CONTRIBUTING.md")
LINKED = ("data/paper/claims.yaml", "CITATION.cff", "notebooks/presets/*.yaml", "data/tables/**/*.csv")
FIGURES = ("*.png", "*.md")
WIDGET = "application/vnd.jupyter.widget-view+json"
SECTION = re.compile(r"\A\*\*([^*]+?)(?:\.|(?<=\?))\*\*\s+")
"""How a cell begins that has a heading of its own: bold, with its full stop."""
HERE = Path(__file__).parent


def main() -> None:
    """Gather and build; end with Sphinx's status. A warning is an error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default=store.REFERENCE)
    parser.add_argument("--set", default="")
    given = parser.parse_args()
    os.environ["SRDYN_RUN"] = name = reproduce.run_name(given.preset, given.set)
    source = gather(store.build_dir() / "site-source")
    site = files.root() / "build" / "site" if name == store.REFERENCE else store.build_dir() / "site"
    doctrees = store.build_dir() / "doctrees"
    options = ["-q", "-W", "--keep-going", "-j", "auto", "-c", str(HERE), "-d", str(doctrees)]
    if bare := [path.stem for path, shown in notebooks().items() if path == shown]:
        print(f"without outputs, since this run has not executed them (make reproduce does): {', '.join(bare)}")
    status = build.main([*options, str(source), str(site)])
    if not status:
        size = sum(path.stat().st_size for path in site.rglob("*") if path.is_file())
        print(f"site: {site / 'index.html'} ({size / 1e6:.0f} MB)")
    raise SystemExit(status)


def gather(source: Path) -> Path:
    """All that the pages show, in one folder; what is no longer there goes."""
    root, kept = files.root(), {source / "index.md"}
    readme = (root / "README.md").read_text("utf-8")
    readme = re.sub(r"^\| \[(.+?)\]\((notebooks/.+?)\)", _at_section, readme, flags=re.MULTILINE)
    written = readme + "\n" + (HERE / "contents.md").read_text("utf-8")
    files.write_bytes(source / "index.md", written.encode())
    found = {path.relative_to(root): path for pattern in SHOWN + LINKED for path in root.glob(pattern)}
    drawn = (root / "figures", store.figure_dir())  # the committed ones, those of the run at work over them
    found |= {Path("figures", p.name): p for folder in drawn for f in FIGURES for p in folder.glob(f)}
    found |= {path.relative_to(root): shown for path, shown in notebooks().items()}
    for name, path in found.items():
        up = "../" * (len(name.parts) - 1)
        change = {".ipynb": still, ".md": functools.partial(with_tables, up=up)}.get(path.suffix, bytes)
        files.write_bytes(source / name, change(path.read_bytes()))
    for path in [*root.glob("srdyn/[a-z]*.py"), root / "srdyn" / "figures" / "atlas.py"]:
        module = ".".join(path.relative_to(root).with_suffix("").parts)
        page = f"# {path.stem}\n\n```{{eval-rst}}\n.. automodule:: {module}\n```\n"
        name = Path("notebooks/site/api", f"{path.stem}.md")
        files.write_bytes(source / name, page.encode())
        found[name] = path
    kept |= {source / name for name in found}
    for path in [path for path in source.rglob("*") if path.is_file() and path not in kept]:
        path.unlink()
    return source


def notebooks() -> dict[Path, Path]:
    """Every notebook, and what is shown of it: the copy that the run executed, else itself."""
    sources = sorted((files.root() / "notebooks").glob("[0-9]*.ipynb"))
    executed = [store.build_dir() / "notebooks" / path.name for path in sources]
    return {path: copy if copy.exists() else path for path, copy in zip(sources, executed, strict=True)}


def _at_section(row: re.Match) -> str:
    """A claim's row, its link leading to the section of the notebook that is headed by it, where one is."""
    claim, notebook = row.groups()
    anchor = re.sub(r"[^\w -]", "", claim.lower()).replace(" ", "-")
    headed = f'"**{claim}.**' in (files.root() / notebook).read_text("utf-8")
    return f"| [{claim}]({notebook}#{anchor})" if headed else row[0]


def with_tables(page: bytes, up: str) -> bytes:
    """A page in which the committed tables that it names are links; `up` leads from it to the root."""
    return re.sub(r"`((?:(?:thorough|main)/)?\d\d_\w+)`", functools.partial(_linked, up), page.decode()).encode()


def _linked(up: str, named: re.Match) -> str:
    path = f"data/tables/{named[1]}.csv"
    return f"[{named[0]}]({up}{path})" if (files.root() / path).exists() else named[0]


def still(notebook: bytes) -> bytes:
    """A notebook without its progress bars: widgets, for which the page would ask the network, and lines drawn again.

    What its cells begin with in bold becomes a heading, which the page's list of contents has.
    """
    content = json.loads(notebook)
    content["metadata"].pop("widgets", None)
    for cell in content["cells"]:
        if "outputs" in cell:
            cell["outputs"] = [output for output in cell["outputs"] if not _bar(output)]
        if cell["cell_type"] == "markdown":
            cell["source"] = SECTION.sub(r"## \1\n\n", "".join(cell["source"]))
    return json.dumps(content).encode()


def _bar(output: dict) -> bool:
    return WIDGET in output.get("data", {}) or "".join(output.get("text", "")).startswith("\r")


if __name__ == "__main__":
    main()
