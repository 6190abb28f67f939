"""Forwards that ask Python about sizes, dtypes, identity and arguments: the answer is true, or nobody gives one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.test_hostile import Inputs, Net, NetOfTwo, assert_same_call, check, conv, image, made, norm

Forward = Callable[[Any, Tensor], Any]


def twice(asked: bool, m: Any, x: Tensor) -> Tensor:
    return m.norm(m.conv(x)) * 2 if asked else m.norm(m.conv(x))


def halves(m: Any, x: Tensor) -> Tensor:
    parts: Any = m.conv(x).split(2, 1)
    if isinstance(parts, list | tuple):
        parts = torch.cat((parts[1], parts[0]), 1)
    return parts * 2


# called with (2, 4, 6, 8) in float64 first, with (1, 4, 8, 8) then
ASKED: dict[str, Forward] = {
    "isinstance of a size": lambda m, x: twice(isinstance(x.shape[-1], int), m, x),
    "isinstance of a computed size": lambda m, x: twice(isinstance(x.size(2) // 2, int), m, x),
    "isinstance of a quotient": lambda m, x: twice(isinstance(x.size(2) / 2, float), m, x),
    "isinstance of a shape": lambda m, x: twice(isinstance(x.shape, tuple), m, x),
    "isinstance of some sizes": lambda m, x: twice(isinstance(x.shape[-2:], tuple | list), m, x),
    "isinstance of a size()": lambda m, x: twice(isinstance(x.size(), torch.Size), m, x),
    "isinstance of a device": lambda m, x: twice(isinstance(x.device, torch.device), m, x),
    "isinstance of a dtype": lambda m, x: twice(isinstance(x.dtype, torch.dtype), m, x),
    "isinstance of a maximum": lambda m, x: twice(isinstance(m.conv(x).max(1), tuple), m, x),
    "isinstance of parts": halves,
    "a dtype is": lambda m, x: twice(x.dtype is torch.float64, m, x),
    "a dtype is a weight's": lambda m, x: twice(x.dtype is m.conv.weight.dtype, m, x),
    "a size in a table": lambda m, x: twice(x.shape[-2] in {6: 1}, m, x),
    "a size's entry": lambda m, x: m.norm(m.conv(x)) * {6: 2.0}.get(x.shape[-2], 9.0),
    "the entry of two sizes": lambda m, x: m.norm(m.conv(x)) * {(6, 8): 2.0}.get((x.shape[-2], x.shape[-1]), 1.0),
    "the entry of a shape": lambda m, x: m.norm(m.conv(x)) * {torch.Size((2, 4, 6, 8)): 2.0}.get(x.shape, 1.0),
    "a size in a set": lambda m, x: twice(x.shape[-1] + 0 in {x.shape[-1]}, m, x),
    "the entry of a dtype": lambda m, x: m.norm(m.conv(x)) * {torch.float64: 2.0}.get(x.dtype, 1.0),
    "the entry of a device": lambda m, x: m.norm(m.conv(x)) * {"cpu": 2.0}.get(x.device.type, 1.0),
    "the entry of a text": lambda m, x: m.norm(m.conv(x)) * {"6x8": 2.0}.get(f"{x.shape[-2]}x{x.shape[-1]}", 1.0),
    "a text that is kept": lambda m, x: (lambda key: twice(key == "6", m, x))(f"{x.shape[-2]}"),
    "a size is the other": lambda m, x: twice(x.shape[-2] is x.shape[-1], m, x),
    "a copy is": lambda m, x: twice(x.contiguous() is x, m, x),
    "a cast is": lambda m, x: twice(x.to(torch.float64) is x, m, x),
    "a dropout is": lambda m, x: twice(F.dropout(x, 0.1, m.training) is x, m, x),
    "an identity": lambda m, x: twice(id(x.contiguous()) == id(x), m, x),
}


@pytest.mark.parametrize("name", ASKED)
def test_what_is_asked_is_answered_truly(name: str) -> None:
    model = made(lambda: Net(ASKED[name], conv=conv(), norm=norm()))
    check(model, (image(2, 4, 6, 8),), (image(1, 4, 8, 8),))


def test_messages_are_no_questions() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        torch._assert(x.shape[1] == 4, f"{x.shape[1]} channels, not 4")
        return m.norm(m.conv(x))

    fused = check(made(lambda: Net(forward, conv=conv(), norm=norm())), (image(2, 4, 6, 8),), (image(1, 4, 8, 8),))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())


def test_classes_and_constants_may_be_compared_by_identity() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.norm(m.conv(x))
        return y if m.kind is nn.Identity and m.missing is None else y * x.mean()

    model = made(lambda: Net(forward, conv=conv(), norm=norm(), kind=nn.Identity, missing=None))
    check(model, (image(2, 4, 6, 8),), operators=1)


# -- arguments of other classes ----------------------------------------------------------------------------------------


def joined(m: Any, x: Any) -> Any:
    many = isinstance(x, tuple | list)
    whole = torch.cat(tuple(x), 0) if many else x
    result = m.norm(m.conv(whole))
    return torch.split(result, [len(each) for each in x], 0) if many else result


def first_of_dict(m: Any, x: Any) -> Tensor:
    return m.norm(m.conv(x["image"] if isinstance(x, dict) else x))


def with_shape(m: Any, x: Any) -> Tensor:
    return m.norm(m.conv(x if hasattr(x, "shape") else x[0]))


def scaled(m: Any, x: Tensor, factor: Any) -> Tensor:
    y = m.norm(m.conv(x))
    return F.interpolate(y, scale_factor=factor) if isinstance(factor, int) else y


def sized(m: Any, x: Tensor, size: Any) -> Tensor:
    size = size if isinstance(size, tuple | list) else (size, size)
    return F.interpolate(m.norm(m.conv(x)), size=size, mode="bilinear")


def masked(m: Any, x: Tensor, mask: Any) -> Tensor:
    y = m.norm(m.conv(x))
    return y if mask is None else y + m.conv(mask)


def times(m: Any, x: Tensor, factor: Any) -> Tensor:
    return m.norm(m.conv(x)) * (factor if isinstance(factor, Tensor) else 2)


X = image(2, 4, 6, 8)
CALLS: dict[str, tuple[type[Net], Callable[..., Any], tuple[Inputs, ...]]] = {
    "a list or a tensor": (Net, joined, (([X, X],), (X,))),
    "a tensor or a list": (Net, joined, ((X,), ([X, X],))),
    "a dictionary or a tensor": (Net, first_of_dict, (({"image": X},), (X,))),
    "a tensor or a dictionary": (Net, first_of_dict, ((X,), ({"image": X},))),
    "something with a shape": (Net, with_shape, ((X,), ([X],))),
    "an integer or a float": (NetOfTwo, scaled, ((X, 2), (X, 1.5), (X, X))),
    "a pair or a number": (NetOfTwo, sized, ((X, (3, 5)), (X, 4), (X, [3, 5]))),
    "a number or a pair": (NetOfTwo, sized, ((X, 4), (X, [3, 5]))),
    "nothing or a tensor": (NetOfTwo, masked, ((X, None), (X, X))),
    "a tensor or nothing": (NetOfTwo, masked, ((X, X), (X, None))),
    "a number or a tensor": (NetOfTwo, times, ((X, 3), (X, X[:, :1]), (X, None))),
    "the same tensor twice": (
        NetOfTwo,
        lambda m, a, b: m.norm(m.conv(a)) * 2 if a is b else m.conv(a) + m.conv(b),
        ((X, X), (X, X + 1)),
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_arguments_may_be_of_several_classes(name: str) -> None:
    cls, forward, calls = CALLS[name]
    check(made(lambda: cls(forward, conv=conv(), norm=norm())), *calls)


class Layer(nn.Module):
    """As DenseNet's: of a list of tensors, or of one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.conv = norm(channels), conv(channels, 2, 1)

    def forward(self, given: Any) -> Tensor:
        before = [given] if isinstance(given, Tensor) else given
        return self.conv(self.norm(torch.cat(before, 1)))


class Dense(nn.Module):
    """Stays Python itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(4 + 2 * place) for place in range(3))

    def forward(self, x: Tensor) -> Tensor:
        found = [x]
        for layer in self.layers:
            if float(x.detach().abs().sum()) < 0.0:
                break
            found.append(layer(found))
        return torch.cat(found, 1)


class Handing(nn.Module):
    """Stays Python itself, and hands its child something that is no tensor."""

    def __init__(self, child: nn.Module, *more: Any) -> None:
        super().__init__()
        self.child, self.more = child, more

    def forward(self, x: Tensor) -> Any:
        given = (x, *self.more) if self.more else ([x, x],)
        if float(x.detach().abs().sum()) < 0.0:
            return x
        return self.child(*given)


INSIDE: dict[str, Callable[[], nn.Module]] = {
    "lists of a dense block": Dense,
    "a list": lambda: Handing(Net(joined, conv=conv(), norm=norm())),
    "an integer": lambda: Handing(NetOfTwo(scaled, conv=conv(), norm=norm()), 2),
    "nothing": lambda: Handing(NetOfTwo(masked, conv=conv(), norm=norm()), None),
}


@pytest.mark.parametrize("name", INSIDE)
def test_what_a_python_parent_hands_on_may_be_no_tensor(name: str) -> None:
    model = made(INSIDE[name])
    fused = check(model, (image(2, 4, 6, 8),), (image(1, 4, 8, 8),))
    assert_same_call(model, fused, (image(3, 4, 5, 5),))
