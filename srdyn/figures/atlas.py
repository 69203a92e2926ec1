"""Every head of a model to look at, compare and select: `atlas.show(model, text="…")`.

`atlas.js` beside this draws it: as a widget (the extra `widget`) where a notebook is at work, whose selection comes
back to Python, else in a frame that needs neither a kernel nor a network.
"""

import functools
import html
import importlib.util
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from srdyn import ablation, models, passport, prune, states
from srdyn.loading import processes
from srdyn.study.run import store

POSITIONS = 32
"""About how many positions of a text have their spectra kept."""
NUMBERS = 2**18
"""How many singular values, and how many changes at tokens, one passport of an atlas holds at most."""


class Atlas:
    """What `show` returns. `places` are the selected heads, (place along L, head), set by hand or by a brush."""

    def __init__(
        self, passports: Sequence[Mapping[str, Any]], model: models.Model | None, tokens: Tensor | None, places: list
    ) -> None:
        self.passports, self.places, self._model, self._tokens = list(passports), places, model, tokens
        super().__init__()  # a widget tells the browser of all this

    @property
    def selected(self) -> Bool[Tensor, "L H"]:
        """The selected heads as `ablation.ablate_heads` takes them; `~selected` is what `pruning.prune_heads` keeps."""
        grid = self.passports[0]["model"]["grid"]
        heads = torch.zeros(grid["L"], grid["H"], dtype=torch.bool)
        for layer, head in self.places:
            heads[layer, head] = True
        return heads

    def loss(self) -> tuple[float, float]:
        """Bits that the model needs for a token of the text with all heads, and without the selected.

        Raises ValueError for an atlas of passports alone.
        """
        if self._model is None:
            raise ValueError("a passport has no model to remove heads from: atlas.show(model, text=…)")
        with ablation.ablate_heads(self._model, self.selected):
            without = prune.loss(self._model, self._tokens)
        return float(prune.loss(self._model, self._tokens).mean()), float(without.mean())

    def page(self) -> str:
        """The atlas as a page of its own."""
        return passport.page(*self.passports, selected=self.places)

    def _repr_html_(self) -> str:
        frame = 'style="width: 100%; height: 48rem; border: 0" title="The heads of a model"'
        return f'<iframe srcdoc="{html.escape(self.page())}" {frame}></iframe>'


def show(
    *subjects: models.Model | Mapping[str, Any],
    text: str | Int[Tensor, "1 T"] | None = None,
    selected: Sequence[Sequence[int]] = (),
    removal: bool = False,
    live: bool | None = None,
) -> Atlas:
    """An atlas of one or two models as they read a text, or of passports that were measured before.

    Of a model as it reads it shows, beside what its passport does, by how much each token changed the Frobenius norm of
    each state and, with `removal`, what the text costs more without each head, in bits a token, by a pass a head. A
    text is cut where more would make the page too large. It is a widget if `live`, by default where Jupyter's kernel
    and anywidget are there and no run is at work (marimo: `live=True`). Raises ValueError for other than one or two
    subjects, for a model without a text or a text without a tokenizer, and for grids that differ.
    """
    if len(subjects) not in (1, 2):
        raise ValueError(f"an atlas shows one or two models side by side, got {len(subjects)}")
    read = [_tokens(x, text) if isinstance(x, models.Model) else None for x in subjects]
    found = [x if tokens is None else _read(x, tokens, removal) for x, tokens in zip(subjects, read, strict=True)]
    grids = [[about["model"]["grid"][axis] for axis in "LH"] for about in found]
    if grids[0] != grids[-1]:
        raise ValueError(f"heads side by side need grids [L, H] of one size, got {grids[0]} and {grids[-1]}")
    model = None if read[0] is None else subjects[0]
    kind = _widget() if live or (live is None and _is_live()) else Atlas
    return kind(found, model, read[0], [[int(x) for x in place] for place in selected])


def _tokens(model: models.Model, text: str | Tensor | None) -> Int[Tensor, "1 T"]:
    if text is None or (isinstance(text, str) and model.tokenizer is None):
        raise ValueError(f"{model.name} needs something to read: give text=…, as tokens [1, T] without a tokenizer")
    tokens = model.tokenizer(text, return_tensors="pt").input_ids if isinstance(text, str) else text
    return tokens[:1, : NUMBERS // (model.grid.L * model.grid.H)]


def _read(model: models.Model, tokens: Int[Tensor, "1 T"], removal: bool) -> dict[str, Any]:
    """A passport with what every token did to every head beside it; `removal` in it is of this text alone."""
    T = tokens.shape[1]
    most = min(T, POSITIONS, max(2, NUMBERS // (passport.PLACES * model.grid.L * model.grid.H)))
    even = np.linspace(1, T, most).round().astype(int).tolist()
    positions = sorted({2**i for i in range(T.bit_length())} | set(even))
    found = passport.measure(model, tokens, positions=positions, removal=tokens if removal else None)
    size = states.trace(model, tokens, range(1, T + 1), measure=torch.linalg.matrix_norm)[:, 0]  # [L, T, H]
    change = torch.cat([size[:, :1], size.diff(dim=1)], 1) / size.amax(1, keepdim=True).clamp(min=1e-30)
    held = [(layer, head) for layer, row in enumerate(model.layers) for head in row.heads]  # as a passport lists them
    gain = [(100 * change[layer, :, head]).round().int().tolist() for layer, head in held]
    ids = tokens[0].tolist()
    spelled = [str(i) for i in ids] if model.tokenizer is None else [model.tokenizer.decode([i]) for i in ids]
    return found | {"text": {"tokens": spelled, "gain": gain}}


def _is_live() -> bool:
    """Whether a person at a notebook would see a widget; what a run executes is read without a kernel."""
    here = processes.in_notebook() and store.run_name() == store.INTERACTIVE
    return here and importlib.util.find_spec("anywidget") is not None


@functools.cache
def _widget() -> type[Atlas]:
    """An atlas that is a widget, made where anywidget is wanted and there."""
    import anywidget
    import traitlets

    class Widget(Atlas, anywidget.AnyWidget):
        _esm = resources.files("srdyn").joinpath(passport.SCRIPT).read_text("utf-8")
        passports = traitlets.List().tag(sync=True)
        places = traitlets.List().tag(sync=True)
        answers = traitlets.Bool().tag(sync=True)  # whether there is a model to take the loss of
        asked = traitlets.Int().tag(sync=True)  # how often the browser asked for it
        told = traitlets.Unicode().tag(sync=True)

        @traitlets.default("answers")
        def _has_model(self) -> bool:
            return self._model is not None

        @traitlets.observe("asked")
        def _answer(self, _change: dict) -> None:
            before, after = self.loss()
            self.told = f"{before:.3f} → {after:.3f} bits a token"

        def _repr_mimebundle_(self, **options: object) -> tuple[dict, dict]:
            bundle = anywidget.AnyWidget._repr_mimebundle_(self, **options)
            data, metadata = bundle if isinstance(bundle, tuple) else (bundle or {}, {})
            return data | {"text/html": self._repr_html_()}, metadata

    return Widget
