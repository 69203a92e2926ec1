"""Builds the site of a run, offline: `python notebooks/site/build.py [--preset … --set "…"]`, as `make site` does.

README, pages, notebooks and figures are gathered in build/<run>/site-source as they lie in the repository, so that
their links hold; Sphinx makes build/site of the reference run's, build/<run>/site of any other's. Notebooks are those
that the run executed, else the sources; nothing is run.
"""

import argparse
import json
import os
import re
from pathlib import Path

from sphinx.cmd import build

from srdyn.loading import files
from srdyn.study import reproduce
from srdyn.study.run import store

SHOWN = ("notebooks/site/*.md", "data/README.md", "data/models/README.md", "CHANGELOG.md", ".github/*.md")
LINKED = ("data/paper/claims.yaml", "CITATION.cff", "notebooks/presets/*.yaml", "data/tables/**/*.csv")
FIGURES = ("*.png", "*.md")
WIDGET = "application/vnd.jupyter.widget-view+json"
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
    status = build.main([*options, str(source), str(site)])
    if not status:
        size = sum(path.stat().st_size for path in site.rglob("*") if path.is_file())
        print(f"site: {site / 'index.html'} ({size / 1e6:.0f} MB)")
    raise SystemExit(status)


def gather(source: Path) -> Path:
    """All that the pages show, in one folder; what is no longer there goes."""
    root, kept = files.root(), {source / "index.md"}
    written = (root / "README.md").read_text("utf-8") + "\n" + (HERE / "contents.md").read_text("utf-8")
    files.write_bytes(source / "index.md", written.encode())
    found = {path.relative_to(root): path for pattern in SHOWN + LINKED for path in root.glob(pattern)}
    found |= {Path("figures", p.name): p for folder in _figure_dirs() for f in FIGURES for p in folder.glob(f)}
    for path in (root / "notebooks").glob("[0-9]*.ipynb"):
        executed = store.build_dir() / "notebooks" / path.name
        found[path.relative_to(root)] = executed if executed.exists() else path
    for name, path in found.items():
        change = {".ipynb": still, ".md": with_tables}.get(path.suffix, bytes)
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


def with_tables(page: bytes) -> bytes:
    """A page that lies two folders deep, in which the committed tables that it names are links."""
    return re.sub(r"`((?:thorough/)?\d\d_\w+)`", _linked, page.decode()).encode()


def _linked(named: re.Match) -> str:
    path = f"data/tables/{named[1]}.csv"
    return f"[{named[0]}](../../{path})" if (files.root() / path).exists() else named[0]


def still(notebook: bytes) -> bytes:
    """A notebook without its widgets, progress bars all of them, for which the page would ask the network."""
    content = json.loads(notebook)
    content["metadata"].pop("widgets", None)
    for cell in content["cells"]:
        shown = [output for output in cell.get("outputs", []) if WIDGET not in output.get("data", {})]
        cell |= {"outputs": shown} if "outputs" in cell else {}
    return json.dumps(content).encode()


def _figure_dirs() -> tuple[Path, Path]:
    """The committed figures, and those of the run at work over them."""
    return files.root() / "figures", store.figure_dir()


if __name__ == "__main__":
    main()
