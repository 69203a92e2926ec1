import copy
import functools

import pytest
import torch
from torch import nn

from srdyn.architectures import rebinding


def scale(x):
    return 2 * x


def logged(function):
    @functools.wraps(function)
    def wrapper(self, *arguments, bias=0.0):
        self.calls += 1
        return function(self, *arguments) + bias

    return wrapper


def hiding(function):
    held = [function]

    @functools.wraps(function)
    def wrapper(self, x):
        return held[0](self, x)

    return wrapper


class Doubling(nn.Module):
    calls = 0

    @logged
    def forward(self, x):
        return scale(x)


class Hidden(nn.Module):
    @hiding
    def forward(self, x):
        return scale(x)


def tripled(x):
    return 3 * x


def test_only_the_bound_instance_changes():
    bound, other, x = Doubling(), Doubling(), torch.ones(2)
    rebinding.bind(bound, {"scale": tripled})
    assert bound(x).tolist() == [3, 3]
    assert other(x).tolist() == [2, 2]
    assert scale(1) == 2
    assert rebinding.meaning(bound, "scale") is tripled
    assert rebinding.meaning(other, "scale") is scale


def test_decorators_of_the_forward_still_act():
    module = Doubling()
    rebinding.bind(module, {"scale": tripled})
    assert module(torch.ones(1), bias=1.0).tolist() == [4]
    assert module.calls == 1


def test_a_copy_calls_itself():
    module = Doubling()
    rebinding.bind(module, {"scale": tripled})
    twin = copy.deepcopy(module)
    assert twin(torch.ones(1)).tolist() == [3]
    assert (module.calls, twin.calls) == (0, 1)


def test_bound_is_undone_in_order_also_after_an_exception():
    module, x = Doubling(), torch.ones(1)

    def failing(x):
        raise KeyError

    with rebinding.bound(module, {"scale": tripled}):
        with pytest.raises(KeyError), rebinding.bound(module, {"scale": failing}):
            module(x)
        assert module(x).tolist() == [3]
    assert module(x).tolist() == [2]
    assert "forward" not in vars(module)


def test_a_name_that_the_forward_does_not_use_is_an_error():
    with pytest.raises(RuntimeError, match="does not call shrink"):
        rebinding.bind(Doubling(), {"shrink": tripled})


def test_a_decorator_that_hides_the_forward_is_an_error():
    with pytest.raises(RuntimeError, match="hides the function"):
        rebinding.bind(Hidden(), {"scale": tripled})
