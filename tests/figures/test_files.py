"""Figures are saved as small files, the same bytes again, and only where they look different."""

import pytest
from committed import CASES
from matplotlib import image

from srdyn.study.run import figure_files

(TABLE,) = CASES["calibrations"].given()  # before the root is another


@pytest.fixture
def clone(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("SRDYN_ROOT", str(tmp_path))
    monkeypatch.setenv("SRDYN_RUN", "test")
    return tmp_path / "build" / "test" / "figures"


def figure(moved):
    return CASES["calibrations"].figure(TABLE.assign(overlap=TABLE["overlap"] + moved))


def test_saving_again_writes_only_what_differs_by_more_than_rounding(clone):
    def saved(moved):
        path = figure_files.save(figure(moved), "02_time")
        assert sorted(clone.iterdir()) == [path.with_suffix(".pdf"), path]
        return path, [each.read_bytes() for each in (path, path.with_suffix(".pdf"))]

    path, first = saved(0.0)
    assert image.imread(path).shape[1] == pytest.approx(300 * figure(0.0).get_figwidth(), abs=1)
    assert saved(1e-9)[1] == first
    path.with_suffix(".pdf").write_bytes(b"torn")
    before = (path.stat().st_mtime_ns, path.stat().st_ino)
    assert saved(0.0)[1] == first
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before
    assert all(new != old for new, old in zip(saved(0.05)[1], first, strict=True))


@pytest.mark.parametrize("stem", ["", "../x", "a b", "x.png"])
def test_a_stem_is_a_plain_name(clone, stem):
    with pytest.raises(ValueError, match="plain name"):
        figure_files.save(figure(0.0), stem)
