"""One computation with a model, repeated with changes in one layer: the layers before it are not run again."""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator

import pandas as pd
from torch import Tensor, nn

from srdyn import models
from srdyn.loading import streaming

log = logging.getLogger(__name__)


class Resumable:
    """`run()` as often as needed, from a later layer on each time, with the same result to the bit.

    `run` passes the same tokens through the whole model, without a cache, in the same order whenever it is called.
    Memory holds what enters one layer, of all of them. Where a model hands more from layer to layer than one tensor,
    or holds its weights elsewhere, it runs whole, as `resumes` says and a log line why.
    """

    def __init__(self, model: models.Model, run: Callable[[], pd.Series]) -> None:
        self.run, self._layers, self.resumes = run, streaming.layers(model.hf), True
        self._start, self._entered = 0, []
        outputs: list[bool] = []
        with contextlib.ExitStack() as hooks:
            for layer in self._layers:
                note = lambda module, given, output: outputs.append(isinstance(output, Tensor))  # noqa: E731
                hooks.enter_context(layer.register_forward_hook(note))
            self.first = run()
        tried = {len(self._layers) // 2, len(self._layers) - 1} - {0}
        if streaming.is_attached(model.hf):
            why = "its weights come from elsewhere"
        elif not all(outputs):
            why = "its layers return more than one tensor"
        elif not all(self.from_layer(index).equals(self.first) for index in sorted(tried)):
            why = "its layers depend on more than the layer before"
        else:
            return
        self.resumes = False
        log.info("every pass runs the whole model: %s", why)

    def from_layer(self, index: int) -> pd.Series:
        """`run()` while nothing before decoder layer `index` differs from what it was at first."""
        if not self.resumes:
            return self.run()
        if index < self._start:
            self._start, self._entered = 0, []
        if index > self._start:
            self._entered = self._entering(index)
            self._start = index
        with self._skipping(range(index)):
            return self.run()

    def _entering(self, index: int) -> list[Tensor]:
        """What enters decoder layer `index`, pass by pass; layers from there on are not run."""
        entered: list[Tensor] = []

        def keep(module: nn.Module, given: tuple, named: dict) -> None:
            entered.append(given[0] if given else named["hidden_states"])

        skipped = [*range(self._start), *range(index, len(self._layers))]
        with self._skipping(skipped), self._layers[index].register_forward_pre_hook(keep, with_kwargs=True):
            self.run()
        return entered

    @contextlib.contextmanager
    def _skipping(self, places: range | list[int]) -> Iterator[None]:
        """While this is open, these layers return what they get, but the first one what was kept."""
        kept, layers = iter(self._entered), [self._layers[place] for place in places]
        before = [vars(layer).get("forward") for layer in layers]
        for place, layer in zip(places, layers, strict=True):
            layer.forward = functools.partial(_next, kept) if place == 0 and self._start else _same
        try:
            yield
        finally:
            for layer, forward in zip(layers, before, strict=True):
                del layer.forward
                if forward is not None:
                    layer.forward = forward


def _same(hidden_states: Tensor, *others: object, **options: object) -> Tensor:
    return hidden_states


def _next(kept: Iterator[Tensor], *others: object, **options: object) -> Tensor:
    return next(kept)
