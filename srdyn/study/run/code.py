"""What code a result depends on: the floor below it, found from the imports, as it was when this process began.

A module edited under a live kernel is not what runs there, so the sources are read once, when this module is imported.
"""

import ast
import functools
import hashlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import srdyn

PACKAGE = Path(__file__).parents[2]
_FILES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
_SOURCES = {name: path.read_bytes() for name, path in _FILES.items()}
_LOADED = frozenset(sys.modules)
_EDITED = frozenset(name for name in _LOADED & _FILES.keys() if _FILES[name].stat().st_mtime > srdyn.BEGAN)


def hash_of(*modules: str) -> str:
    """SHA-256 over the code of these modules of srdyn and of all that they import of it; docstrings do not count.

    Raises RuntimeError where one was edited after this process began and before it, or this module, was imported.
    """
    names = reached(*modules)
    edited = [n for n in names if n in sys.modules and n not in _LOADED and _FILES[n].read_bytes() != _SOURCES[n]]
    edited += [n for n in names if n in _EDITED]
    if edited:
        raise RuntimeError(f"{', '.join(edited)} changed after this process began: start it (the kernel) again")
    return hashlib.sha256(_listed(names).encode()).hexdigest()


def loaded() -> str:
    """What this process has imported of srdyn by now: a line a module, its name and the hash of its code.

    Docstrings do not count. The hashes are of Python's syntax trees, which differ between its versions.
    """
    return _listed(sorted(sys.modules.keys() & _SOURCES.keys()))


def changed(listed: str) -> list[str]:
    """The modules of such a list, written under this version of Python, whose code is another now, or is gone."""
    lines = (line.split() for line in listed.splitlines())
    return [name for name, content in lines if name not in _SOURCES or _parsed(name)[1] != content]


def reached(*modules: str) -> list[str]:
    """These modules and what they import of srdyn, directly or not, with the packages that hold them; sorted."""
    found, left = set(), {*modules}
    while left:
        found |= left
        below = {name.rpartition(".")[0] for name in left} | {name for module in left for name in _parsed(module)[0]}
        left = (below & _SOURCES.keys()) - found
    return sorted(found)


def imported(source: str) -> set[str]:
    """The modules of srdyn that a source imports, wherever in it."""
    return {name for node in ast.walk(ast.parse(source)) for name in _named(node)} & _SOURCES.keys()


def _named(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield node.module
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _listed(names: Sequence[str]) -> str:
    return "".join(f"{name} {_parsed(name)[1]}\n" for name in names)


@functools.cache
def _parsed(name: str) -> tuple[set[str], str]:
    """What a module imports, and the hash of its syntax tree, from which texts that stand alone are taken."""
    tree = ast.parse(_SOURCES[name])
    for node in ast.walk(tree):
        if isinstance(getattr(node, "body", None), list):
            node.body = [line for line in node.body if not _is_text(line)]
    imports = {name for node in ast.walk(tree) for name in _named(node)}
    return imports, hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _is_text(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str)
