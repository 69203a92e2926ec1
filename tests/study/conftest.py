"""The repository as committed, to be changed."""

import os
import shutil

import pytest

from srdyn.loading import files
from srdyn.study.run import store


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of all that is committed; a file there is a link until it is written."""
    for name in ("data", "figures", "notebooks"):
        shutil.copytree(files.root() / name, tmp_path / name, copy_function=os.symlink)
    shutil.copy(files.root() / "README.md", tmp_path)
    monkeypatch.setenv("SRDYN_ROOT", str(tmp_path))
    monkeypatch.setenv("SRDYN_RUN", store.REFERENCE)
    return tmp_path
