"""Figures as files whose bytes depend on nothing but the figure."""

import io
import math
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from srdyn.loading import files
from srdyn.study.run import store

DPI = 300
_TICKS = {f"{axis}tick.{name}": size for axis in "xy" for name, size in (("labelsize", 7), ("major.width", 0.6))}
STYLE = _TICKS | {"pdf.fonttype": 42}
"""What a figure takes from matplotlib's settings when it is drawn, as ticks may be made then; the rest stands in it."""
_UNDATED = {"CreationDate": None, "Creator": None, "Producer": None}
"""What a pdf would say about when and by which version it was written, left out."""
_FEW = 20
"""Pixels that may differ between two drawings of one figure: a line moved by rounding. The thinnest digit has more."""


def save(figure: Figure, stem: str) -> Path:
    """Write `<stem>.pdf` and `<stem>.png` (300 dpi) into `store.figure_dir()`; return the path of the png.

    Both are left alone where the png that stands there looks the same, up to `_FEW` pixels: tables within tolerance of
    the committed ones draw lines that differ by rounding. Raises ValueError for a stem that is not a plain name.
    """
    if not re.fullmatch(r"\w[\w-]*", stem):
        raise ValueError(f"a figure's stem is a plain name of letters, digits, _ and -, not {stem!r}")
    path, drawn = store.figure_dir() / f"{stem}.png", _png(figure)
    pdf = path.with_suffix(".pdf")
    differ = _pixels(path, drawn)
    same = pdf.exists() and differ <= _FEW
    store.note_compared(path, differ / _FEW, "" if same else _told(path, differ))
    if not same:
        files.write_bytes(pdf, _drawn(figure, format="pdf", metadata=_UNDATED).getvalue())
        files.write_bytes(path, drawn)
    return path


def _pixels(path: Path, drawn: bytes) -> float:
    """How many pixels of the png at `path` are not those of `drawn`; infinitely many without one of its size."""
    if not path.exists():
        return math.inf
    there, here = (np.asarray(Image.open(x).convert("RGB"), dtype=int) for x in (path, io.BytesIO(drawn)))
    # Two palettes of 256 colours may hold a grey in shades a few levels apart.
    return float((abs(there - here).max(-1) > 8).sum()) if there.shape == here.shape else math.inf


def _told(path: Path, differ: float) -> str:
    if math.isinf(differ):
        return "has another size" if path.exists() else "was not there"
    return f"{differ:.0f} pixels differ" if differ > _FEW else "its pdf was not there"


def _png(figure: Figure) -> bytes:
    """256 colours are enough for these figures, and a third of the bytes."""
    image = Image.open(_drawn(figure, format="png", dpi=DPI)).convert("RGB")
    buffer = io.BytesIO()
    image.quantize(256, dither=Image.Dither.NONE).save(buffer, "png", optimize=True, dpi=(DPI, DPI))
    return buffer.getvalue()


def _drawn(figure: Figure, **options: object) -> io.BytesIO:
    buffer = io.BytesIO()
    with plt.style.context(STYLE, after_reset=True):
        figure.savefig(buffer, **options)
    return buffer
