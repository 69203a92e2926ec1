"""A recurrence that hands out its state on the way, whatever function computes it."""

import bisect
import contextlib
import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from srdyn import architectures
from srdyn.architectures import rebinding, recipe
from srdyn.kernels import recurrence


def fed(
    family: recipe.Recipe, positions: recurrence.Positions, visit: Callable[[int, Tensor], Tensor], function: Callable,
    call: recipe.Call, *, chunk: int | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Outputs and last state of the call, made in calls that end at multiples of a chunk, the function's by default.

    `visit` is told the state at each of the positions; from what it returns at an end of a call the next goes on.
    """
    if call.state is not None:
        advice = "call the model without past_key_values, and change no states that are traced"
        raise ValueError(f"states are read and changed in whole sequences: {advice}")
    positions = recurrence.checked_positions(positions, call.tokens)
    run, chunk = functools.partial(family.run, function), chunk or family.chunk_of(call)
    start, state, outputs = 0, None, []
    for end in sorted({position // chunk * chunk for position in positions} - {0} | {call.tokens}):
        inside = slice(bisect.bisect_right(positions, start), bisect.bisect_left(positions, end))
        for position in positions[inside]:
            visit(position, family.oriented(run(call.between(start, position, state))[1]))
        output, state = run(call.between(start, end, state))
        if end in positions:
            state = family.oriented(visit(end, family.oriented(state)))
        outputs.append(output)
        start = end
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1), state


def taken_over(
    site: architectures.Site, read: Callable[[Callable, recipe.Call], tuple[Tensor, Tensor]], names: Sequence[str] = ()
) -> contextlib.AbstractContextManager[None]:
    """While this is open, `read(function, call)` gives the outputs and the last state of one layer's recurrence.

    `names` are taps of its recipe, by default that of whole passes and that of single steps.
    """

    def tap(function: Callable) -> Callable:
        def call(*arguments, **options):
            taken = site.recipe.taken_apart(arguments, options)
            return site.recipe.returned(*read(function, taken), options)

        return call

    taps = names or (site.recipe.chunk_tap, site.recipe.step_tap)
    return rebinding.bound(site.mixer, {name: _beneath(rebinding.meaning(site.mixer, name), tap) for name in taps})


def watched(site: architectures.Site, see: Callable[[recipe.Inputs], None]) -> contextlib.AbstractContextManager[None]:
    """While this is open, `see` is told what the recurrence of one layer reads, as a whole."""

    def watch(function: Callable) -> Callable:
        def call(*arguments, **options):
            taken, decay = site.recipe.taken_apart(arguments, options), getattr(site.mixer, "srdyn_decay", None)
            see(site.recipe.inputs(taken if decay is None else site.recipe.forgetting(taken, decay)))
            return function(*arguments, **options)

        call.watch, call.watched = watch, function
        return call

    names = site.recipe.readers
    return rebinding.bound(site.mixer, {name: watch(rebinding.meaning(site.mixer, name)) for name in names})


def _beneath(function: Callable, tap: Callable[[Callable], Callable]) -> Callable:
    """The function tapped; who watches it watches what comes of that, and sees its calls before they are cut."""
    watch = getattr(function, "watch", None)
    return tap(function) if watch is None else watch(_beneath(function.watched, tap))


def unpadded(hf: PreTrainedModel) -> contextlib.AbstractContextManager:
    """While this is open, a pass that leaves tokens out by an attention_mask raises ValueError.

    What a short convolution reads before such a token it writes after it, so that the state is not that of the others.
    """
    return hf.get_decoder().register_forward_pre_hook(_refuse_padding, with_kwargs=True)


def _refuse_padding(_decoder: nn.Module, _arguments: tuple, options: dict) -> None:
    mask = options.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2 and not mask.bool().all():
        raise ValueError("padding is no text, and would change states: give sequences of one length, without it")
