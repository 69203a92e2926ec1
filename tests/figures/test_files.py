"""Figures are saved as small files, the same bytes again, and only where they look different."""

import pytest
from committed import CASES, drawn
from matplotlib import image

from srdyn.study.run import figure_files

(TABLE,) = CASES["calibrations"].given()  # before the root is another


@pytest.fixture
def clone(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("SRDYN_ROOT", str(tmp_path))
    monkeypatch.setenv("SRDYN_RUN", "test")
    return tmp_path / "build" / "test" / "figures"


@pytest.fixture(params=["trajectories", "measures", "context_matrix"])
def named(request):
    return request.param, drawn(request.param)


def test_files_are_small_and_open(named, clone):  # drawn from the committed table before the root is another
    name, figure = named
    path = figure_files.save(figure, name)
    assert path == clone / f"{name}.png"
    assert path.stat().st_size <= 300_000
    assert image.imread(path).shape[1] == pytest.approx(300 * figure.get_figwidth(), abs=1)
    content = path.with_suffix(".pdf").read_bytes()
    assert content.startswith(b"%PDF")
    assert b"CreationDate" not in content
    assert b"Type3" not in content
    assert sorted(p.name for p in clone.iterdir()) == [f"{name}.pdf", f"{name}.png"]


def test_saving_again_writes_only_what_differs(clone):
    figure_files.save(figure(0.0), "02_time")
    (clone / "02_time.pdf").write_bytes(b"torn")
    untouched = clone / "02_time.png"
    before = (untouched.stat().st_mtime_ns, untouched.stat().st_ino)
    figure_files.save(figure(0.0), "02_time")
    assert (untouched.stat().st_mtime_ns, untouched.stat().st_ino) == before
    assert (clone / "02_time.pdf").read_bytes().startswith(b"%PDF")


def figure(moved):
    return CASES["calibrations"].figure(TABLE.assign(overlap=TABLE["overlap"] + moved))


def test_a_line_moved_by_rounding_leaves_the_files_and_a_moved_point_does_not(clone):
    def saved(moved):
        figure_files.save(figure(moved), "02_time")
        return [(clone / f"02_time.{suffix}").read_bytes() for suffix in ("png", "pdf")]

    first = saved(0.0)
    assert saved(1e-9) == first
    assert all(new != old for new, old in zip(saved(0.05), first, strict=True))


@pytest.mark.parametrize("stem", ["", "../x", "a b", "x.png"])
def test_a_stem_is_a_plain_name(clone, stem):
    with pytest.raises(ValueError, match="plain name"):
        figure_files.save(figure(0.0), stem)
