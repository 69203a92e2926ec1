"""Figures as files whose bytes depend on nothing but the figure."""

import io
import re
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from srdyn import store
from srdyn.figures import style

DPI = 300
UNDATED = {"CreationDate": None, "Creator": None, "Producer": None}
"""What a pdf would say about when and by which version it was written, left out."""


def save(figure: Figure, stem: str) -> Path:
    """Write `<stem>.pdf` and `<stem>.png` (300 dpi) into `store.figure_dir()`; return the path of the png.

    A file that holds these bytes already is left alone. Raises ValueError for a stem that is not a plain name.
    """
    if not re.fullmatch(r"\w[\w-]*", stem):
        raise ValueError(f"a figure's stem is a plain name of letters, digits, _ and -, not {stem!r}")
    for suffix, encode in (("pdf", _pdf), ("png", _png)):
        path, content = store.figure_dir() / f"{stem}.{suffix}", encode(figure)
        if not path.exists() or path.read_bytes() != content:
            store.write_bytes(path, content)
    return path


def _pdf(figure: Figure) -> bytes:
    return _drawn(figure, format="pdf", metadata=UNDATED).getvalue()


def _png(figure: Figure) -> bytes:
    """256 colours are enough for these figures, and a third of the bytes."""
    image = Image.open(_drawn(figure, format="png", dpi=DPI)).convert("RGB")
    buffer = io.BytesIO()
    image.quantize(256, dither=Image.Dither.NONE).save(buffer, "png", optimize=True, dpi=(DPI, DPI))
    return buffer.getvalue()


def _drawn(figure: Figure, **options: object) -> io.BytesIO:
    buffer = io.BytesIO()
    with style.style():
        figure.savefig(buffer, **options)
    return buffer
