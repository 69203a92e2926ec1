"""A recurrence that hands out its state on the way, whatever function computes it."""

import bisect
import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from srdyn.architectures import recipe
from srdyn.kernels import recurrence


@dataclasses.dataclass(frozen=True)
class Feed:
    """A layer's recurrence, fed in segments, which hands out the state at the given positions."""

    family: recipe.Recipe
    mixer: nn.Module
    positions: recurrence.Positions
    visit: Callable[[int, Tensor], None]
    held_bytes: int

    def read(self, function: Callable, call: recipe.Call) -> tuple[Tensor, Tensor]:
        """Outputs and last state of the call."""
        if call.state is not None:
            raise ValueError("a tapped model reads whole sequences: call it without past_key_values")
        positions = recurrence.checked_positions(self.positions, call.tokens)
        with_states, tensors = getattr(function, "with_states", None), call.timed.values()
        elsewhere = any(x.device.type != "cpu" for x in tensors)
        differentiated = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
        if with_states is None or elsewhere or differentiated:
            parts = self._in_segments(function, call, positions)
        else:
            parts = self._together(with_states, call, positions)
        outputs = []
        for output, state in parts:  # noqa: B007  the last state is returned
            outputs.append(output)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1), state

    def _together(
        self, with_states: Callable, call: recipe.Call, positions: list[int]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Outputs and last state of parts of the call, from a function that hands out many states at a time."""
        heads = self.family.heads(self.mixer)
        together = max(1, self.held_bytes // (call.sequences * 4 * heads.H * heads.K * heads.V))
        start, state = 0, None
        for first in range(0, len(positions), together):
            listed = positions[first : first + together]
            end = listed[-1] if listed[-1] != positions[-1] else call.tokens
            function = functools.partial(self._handing_out, with_states, start, listed)
            output, state = self.family.run(function, call.between(start, end, state))
            yield output, state
            start = end

    def _handing_out(
        self, with_states: Callable, start: int, listed: list[int], *arguments, **options
    ) -> tuple[Tensor, Tensor]:
        output, state, held = with_states(*arguments, positions=[position - start for position in listed], **options)
        for position, now in zip(listed, held.unbind(1), strict=True):
            self._hand_out(position, now)
        return output, state

    def _in_segments(
        self, function: Callable, call: recipe.Call, positions: list[int]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The same from any function, in calls that end at multiples of its chunk."""
        run, chunk = functools.partial(self.family.run, function), self.family.chunk_of(call)
        start, state = 0, None
        for end in sorted({position // chunk * chunk for position in positions} - {0} | {call.tokens}):
            inside = slice(bisect.bisect_right(positions, start), bisect.bisect_left(positions, end))
            for position in positions[inside]:
                self._hand_out(position, run(call.between(start, position, state))[1])
            output, state = run(call.between(start, end, state))
            if end in positions:
                self._hand_out(end, state)
            yield output, state
            start = end

    def _hand_out(self, position: int, state: Tensor) -> None:
        self.visit(position, self.family.oriented(state))


@contextlib.contextmanager
def unpadded(hf: PreTrainedModel) -> Iterator[None]:
    """While this is open, a pass that leaves tokens out by an attention_mask raises ValueError.

    What a short convolution reads before such a token it writes after it, so that the state is not that of the others.
    """
    with hf.get_decoder().register_forward_pre_hook(_refuse_padding, with_kwargs=True):
        yield


def _refuse_padding(_decoder: nn.Module, _arguments: tuple, options: dict) -> None:
    mask = options.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2 and not mask.bool().all():
        raise ValueError("padding is no text, and would change states: give sequences of one length, without it")
