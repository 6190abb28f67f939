"""Fifty compilers with a mistake in them: validation lets nothing wrong out of any."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import repcompile.affine as affine
import repcompile.constants as constants
import repcompile.emit as emit
import repcompile.fold as fold
import repcompile.modules as modules
import repcompile.paths as paths
import repcompile.rewrite as rewrite
import repcompile.rules.channels as channels
import repcompile.rules.norm as norms
import repcompile.rules.pointwise as pointwise
from repcompile import VerificationError, compile_model
from repcompile.affine import Affine
from repcompile.axis import Axis
from repcompile.compare import Check
from repcompile.values import Values, computed
from tests.test_hostile import Net, copied, gain, image, made

Patch = pytest.MonkeyPatch
Change = Callable[..., Any]


def conv(size: Any = 3, padding: Any = 1, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(4, 4, size, padding=padding, **options)


def norm() -> nn.BatchNorm2d:
    return nn.BatchNorm2d(4)


def _net(forward: Callable[[Any, Tensor], Any], **parts: Callable[[], Any]) -> nn.Module:
    return made(lambda: Net(forward, **{name: build() for name, build in parts.items()}))


@cache
def model(name: str) -> nn.Module:
    """Small networks in each of which something else shows a mistake."""
    match name:
        case "block":  # RepVGG with two groups: padding, an identity, three norms
            return _net(
                lambda m, x: torch.relu(m.n3(m.c3(x)) + m.n1(m.c1(x)) + m.n0(x)),
                **{
                    "c3": lambda: conv(groups=2),
                    "c1": lambda: conv(1, 0, groups=2),
                    "n3": norm,
                    "n1": norm,
                    "n0": norm,
                },
            )
        case "uneven":  # other numbers on each axis
            options: dict[str, Any] = {"stride": (2, 1), "dilation": (1, 2)}
            return _net(lambda m, x: m.n(m.c(x)).tanh(), c=lambda: conv((3, 2), (1, 2), **options), n=norm)
        case "literal":  # the norm's shift meets the padding: a border map
            return _net(lambda m, x: m.c(m.n(x)) + x, c=lambda: conv(groups=4), n=norm)
        case "reflecting":
            return _net(lambda m, x: m.n(m.c(x)).tanh(), c=lambda: conv(padding_mode="reflect"), n=norm)
        case "lopsided":  # more padding on one side
            return _net(lambda m, x: m.n(m.c(m.pad(x))).tanh(), c=lambda: conv(3, 0), n=norm, pad=_pad)
        case "transposed":
            up = {"c": lambda: nn.ConvTranspose2d(4, 4, 3, 2, 1, output_padding=1, groups=2), "n": norm}
            return _net(lambda m, x: m.n(m.c(x)).tanh(), **up)
        case "chain":  # a window behind a pointwise map
            return _net(lambda m, x: m.c3(m.c1(x)).tanh(), c1=lambda: conv(1, 0), c3=lambda: conv(3, 0))
        case "padded chain":  # two windows: not one convolution
            options = {"groups": 4, "bias": False}
            build = {name: lambda: conv((3, 1), (1, 0), **options) for name in ("c1", "c2")}
            return _net(lambda m, x: m.c2(m.c1(x)).tanh(), **build)
        case "turned":  # a summand of another layout
            build = {"c1": lambda: conv(1, 0), "c2": lambda: conv(1, 0)}
            return _net(lambda m, x: m.c1(x) + m.c2(x.transpose(2, 3)), **build)
        case "tokens":  # a norm behind a Linear, on another axis
            return _net(lambda m, x: m.n(m.l(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)).tanh(), l=_linear, n=norm)
        case "turned tokens":
            return _net(lambda m, x: m.l(m.n(x.tanh()).transpose(1, 3)).tanh(), l=_linear, n=norm)
        case "linears":
            return _net(lambda m, x: m.l2(m.l1(x)).tanh(), l1=_linear, l2=_linear)
        case "joined":  # convolutions of one source, one behind the other
            return _net(lambda m, x: m.n(torch.cat([m.a(x), m.b(x)], 1)).tanh(), a=_half, b=_half, n=norm)
        case "picked":  # some channels
            return _net(lambda m, x: m.c(m.n(x)[:, 1:3]).tanh(), c=lambda: nn.Conv2d(2, 4, 1), n=norm)
        case "arithmetic":
            forward = lambda m, x: torch.sub(m.c(x) * m.g / m.h, m.s, alpha=2).tanh()  # noqa: E731
            return _net(forward, c=conv, g=_gain, h=_gain, s=_gain)
        case "tail":  # a pool in between
            forward = lambda m, x: m.l(m.n(x.tanh()).mean((2, 3)))  # noqa: E731
            return _net(forward, l=_linear, n=norm)
        case "two steps":  # values with several readers, and an activation between regions
            return _net(
                lambda m, x: (y := torch.relu(m.n1(m.c1(x)))) - torch.sigmoid(m.n2(m.c2(y))) * m.n2(x),
                **{"c1": conv, "c2": lambda: conv(1, 0), "n1": norm, "n2": norm},
            )
        case "computed":  # weights made in forward
            forward = lambda m, x: F.conv2d(x, m.c.weight * m.g[:, None]).tanh()  # noqa: E731
            return _net(forward, c=lambda: conv(3, 0), g=_gain)
        case "gain":  # what stays a number for each channel
            return _net(lambda m, x: (m.n(x) * m.g).tanh(), n=norm, g=_gain)
        case _:
            raise ValueError(name)


def _pad() -> nn.Module:
    return nn.ZeroPad2d((2, 0, 0, 1))


def _linear() -> nn.Linear:
    return nn.Linear(4, 4)


def _half() -> nn.Conv2d:
    return nn.Conv2d(4, 2, 3, padding=1)


def _gain() -> nn.Parameter:
    return gain(4, 1, 1)


# -- mistakes ----------------------------------------------------------------------------------------------------------


def after(owner: Any, name: str, change: Change) -> Callable[[Patch], None]:
    """The function returns something else than it should."""

    def patch(monkeypatch: Patch) -> None:
        right = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, **kwargs: change(right(*args, **kwargs)))

    return patch


def instead(owner: Any, name: str, function: Any) -> Callable[[Patch], None]:
    """Another function.  It gets the right one first."""

    def patch(monkeypatch: Patch) -> None:
        right = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, **kwargs: function(right, *args, **kwargs))

    return patch


def values(
    change: Callable[[Tensor, Tensor | None, Tensor | None], Sequence[Tensor | None]],
) -> Callable[[Patch], None]:
    """The fold returns other numbers."""
    return after(rewrite, "fold", lambda v: Values(*change(v.kernel, v.bias, v.border)))  # type: ignore[arg-type]


def kernel(change: Callable[[Tensor], Tensor]) -> Callable[[Patch], None]:
    return values(lambda k, b, t: (change(k), b, t))


def emitted(change: Callable[[Any], None], *classes: type[nn.Module]) -> Callable[[Patch], None]:
    """The emitted modules of these classes are changed in place."""

    def changed(module: nn.Module) -> nn.Module:
        for part in module.modules():
            if isinstance(part, classes):
                change(part)
        return module

    return after(rewrite, "emit", changed)


def attribute(name: str, change: Callable[[Any], Any], *classes: type[nn.Module]) -> Callable[[Patch], None]:
    return emitted(lambda part: setattr(part, name, change(getattr(part, name))), *classes)


def axes(change: Callable[[Sequence[Axis]], Sequence[Axis]]) -> Callable[[Patch], None]:
    """What is emitted reads other positions than what was folded."""
    return instead(rewrite, "emit", lambda right, x, v: right(replace(x, axes=tuple(change(x.axes))), v))


def _first_off(tensor: Tensor, by: float = 1e-6) -> Tensor:
    changed = tensor.clone()
    changed.flatten()[0] += by
    return changed


def _corner(kernel: Tensor) -> Tensor:
    changed = kernel.clone()
    changed[(..., *[0] * (kernel.dim() - 2))] = 0.0
    return changed


def _swapped(pair: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(reversed(pair))


def _without_border(x: Affine, outer: Any, inner: Any, reach: Tensor, bias: Any, border: Any) -> Any:
    total = reach.reshape(x.c_out, -1).sum(1)
    return (total if bias is None else bias + total), border


def _wrong_reader(right: Any, graph: Any, item: Any, known: Any, *rest: Any, **named: Any) -> Any:
    """The call reads the model's input, not the region's source."""
    source = item.region.source
    return right(graph, item, {**known, source: next(iter(known.values()))}, *rest, **named)


def _norm(change: Callable[[Any, Any, Any, Any, float], tuple[Any, ...]]) -> Callable[[Patch], None]:
    """The batch norm is folded from other numbers."""
    return instead(norms, "fold_norm", lambda right, m, v, w, b, e: right(*change(m, v, w, b, e)))


def _first_alone(right: Any, x: Any, a: Any, v: Values, b: Any, w: Values) -> Values:
    return right(x, a, v, b, Values(0 * w.kernel))


def _of_transposed(right: Any, outer: Any, o: Tensor, inner: Any, i: Tensor, groups: int) -> Tensor:
    return right(outer, o.transpose(0, 1), inner, i, groups)


def _from_the_first(right: Any, count: int, index: Sequence[int], n_axes: int) -> Affine:
    return right(count, [entry - index[0] for entry in index], n_axes)


def _more(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach() * 1.01)


def _scaled(module: Any) -> nn.Module:
    for parameter in module.parameters():
        parameter.data.mul_(1.01)
    return module


MISTAKES: dict[str, tuple[str, Callable[[Patch], None]]] = {
    # folding
    "kernel turned around": ("block", kernel(lambda k: k.flip(*range(2, k.dim())))),
    "kernel turned around along the width": ("uneven", kernel(lambda k: k.flip(-1))),
    "rows and columns exchanged": ("block", kernel(lambda k: k.transpose(-1, -2))),
    "matrix transposed": ("linears", kernel(lambda k: k.T)),
    "outputs rotated": ("block", kernel(lambda k: k.roll(1, 0))),
    "inputs rotated": ("block", kernel(lambda k: k.roll(1, 1))),
    "a corner forgotten": ("block", kernel(_corner)),
    "one number off by a millionth": ("block", kernel(_first_off)),
    "kernel rounded to float32": ("block", kernel(lambda k: k.float().double())),
    "kernel doubled": ("chain", kernel(lambda k: 2 * k)),
    "kernel of NaN": ("chain", kernel(lambda k: k * float("nan"))),
    "bias dropped": ("block", values(lambda k, b, t: (k, None, t))),
    "bias doubled": ("block", values(lambda k, b, t: (k, None if b is None else 2 * b, t))),
    "bias negated": ("tokens", values(lambda k, b, t: (k, None if b is None else -b, t))),
    "bias off by a millionth": ("chain", values(lambda k, b, t: (k, None if b is None else _first_off(b), t))),
    "biases rotated": ("block", values(lambda k, b, t: (k, None if b is None else b.roll(1), t))),
    "border dropped": ("literal", values(lambda k, b, t: (k, b, None))),
    "border negated": ("literal", values(lambda k, b, t: (k, b, None if t is None else -t))),
    "border moved": ("literal", values(lambda k, b, t: (k, b, None if t is None else t.roll(1, -1)))),
    "border as a bias": ("literal", instead(fold, "_with_constant", lambda right, *args: _without_border(*args))),
    "second summand forgotten": ("block", instead(fold, "_added", _first_alone)),
    "second summand twice": ("block", instead(fold, "_added", lambda right, x, a, v, b, w: right(x, b, w, b, w))),
    "groups laid out in reverse": ("block", after(fold, "_regrouped", lambda k: k.flip(1))),
    "concatenated in reverse": ("joined", instead(fold, "_concatenated", lambda right, x, p: right(x, p[::-1]))),
    "outer kernel transposed": ("chain", instead(fold, "_convolved_kernels", _of_transposed)),
    "small kernel in the corner": ("block", instead(fold, "_taps", lambda right, part, whole: slice(0, part.size))),
    # emission
    "strides exchanged": ("uneven", attribute("stride", _swapped, nn.Conv2d)),
    "stride forgotten": ("uneven", attribute("stride", lambda s: (1, 1), nn.Conv2d)),
    "dilations exchanged": ("uneven", attribute("dilation", _swapped, nn.Conv2d)),
    "padding forgotten": ("block", attribute("padding", lambda p: (0, 0), nn.Conv2d)),
    "paddings exchanged": ("uneven", attribute("padding", _swapped, nn.Conv2d)),
    "sides exchanged": ("lopsided", axes(lambda every: [replace(a, lo=a.hi, hi=a.lo) for a in every])),
    "axes exchanged": ("lopsided", axes(lambda every: every[::-1])),
    "padding mode forgotten": ("reflecting", attribute("padding_mode", lambda mode: "zeros", nn.Conv2d)),
    "transposed kernel not turned": ("transposed", after(emit, "_turned", lambda k: k.flip(2, 3))),
    "output padding forgotten": ("transposed", attribute("output_padding", lambda p: (0, 0), nn.ConvTranspose2d)),
    "shift for the gain": ("gain", emitted(lambda m: m.weight.data.copy_(m.bias.data), modules.ChannelAffine)),
    "shift forgotten": ("gain", emitted(lambda m: m.bias.data.zero_(), modules.ChannelAffine)),
    # rules
    "epsilon forgotten": ("block", _norm(lambda m, v, w, b, e: (m, v, w, b, 0.0))),
    "mean for variance": ("block", _norm(lambda m, v, w, b, e: (m, computed(torch.abs, m, shape=m.shape), w, b, e))),
    "weight of the norm forgotten": ("block", _norm(lambda m, v, w, b, e: (m, v, None, b, e))),
    "bias of the norm forgotten": ("block", _norm(lambda m, v, w, b, e: (m, v, w, None, e))),
    "weight and bias of the norm exchanged": ("block", _norm(lambda m, v, w, b, e: (m, v, b, w, e))),
    "channels picked from the first on": ("picked", instead(channels.Affine, "select", _from_the_first)),
    # legality
    "two windows composed": ("padded chain", instead(affine, "_require_composable", lambda right, outer, inner: None)),
    "other layouts added": ("turned", instead(paths, "_same_layout", lambda right, a, b: True)),
    "shift forgotten by the algebra": ("arithmetic", instead(affine, "_shifted", lambda right, x, shift: x)),
    "gain forgotten by the algebra": ("arithmetic", instead(affine, "_scaled", lambda right, x, gain: x)),
    "multiplied, not divided": ("arithmetic", instead(pointwise, "computed", lambda right, f, *a, shape: a[0])),
    # assembly
    "another value read": ("two steps", instead(rewrite, "_call", _wrong_reader)),
    "change of layout forgotten": ("turned tokens", instead(rewrite, "_steps", lambda right, graph, path, x, new: x)),
    "constants settled wrongly": ("computed", after(constants.Constants, "evaluated", _more)),
    "rounded to float16": ("block", after(rewrite, "cast", lambda m: m.half().double())),
    "weights scaled when they are cast": ("chain", after(rewrite, "cast", _scaled)),
}  # fmt: skip


def _calls(name: str) -> tuple[tuple[Tensor, ...], ...]:
    """The example, and another size."""
    if name in ("linears", "turned", "turned tokens"):  # as many rows as columns, and as channels
        return (image(2, 4, 4, 4),), (image(3, 4, 4, 4, seed=1),)
    return (image(2, 4, 9, 6),), (image(1, 4, 8, 7, seed=1),)


def _differs(module: nn.Module, name: str) -> bool:
    """Whether the fused module is wrong at the size of the example or at another one, or does not run."""
    for inputs in _calls(name):
        with torch.no_grad():
            expected = model(name)(*copied(inputs))
            try:
                got = module(*copied(inputs))
            except RuntimeError:
                return True
        if got.shape != expected.shape or not torch.allclose(got, expected, rtol=0.0, atol=1e-9):
            return True
    return False


@pytest.mark.parametrize("name", sorted({name for name, _ in MISTAKES.values()}))
def test_without_a_mistake_every_model_fuses_and_is_equal(name: str) -> None:
    result = compile_model(model(name), _calls(name)[0])
    assert not result.rollbacks
    assert not _differs(result.module, name)


class Unchecked:
    """An outcome that passes."""

    check = Check(0.0, 1.0, 1.0)

    def rounded(self, module: nn.Module) -> Check:
        return self.check


@pytest.mark.parametrize("mistake", MISTAKES)
def test_without_validation_a_mistake_shows(mistake: str, monkeypatch: Patch) -> None:
    """Otherwise the next test would be of no use."""
    name, patch = MISTAKES[mistake]
    patch(monkeypatch)
    monkeypatch.setattr(rewrite, "outcome_of", lambda *args: Unchecked())
    monkeypatch.setattr(rewrite, "_require_finite", lambda *args: None)
    assert _differs(compile_model(model(name)).module, name)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_caught_before_the_module_is_returned(mistake: str, monkeypatch: Patch) -> None:
    """Rolled back, with a line in the report and a correct model, or an error and no model."""
    name, patch = MISTAKES[mistake]
    patch(monkeypatch)
    try:
        result = compile_model(model(name), _calls(name)[0])
    except VerificationError:
        return
    assert not _differs(result.module, name)
    assert result.rollbacks
    assert any(left.reason.startswith("rolled back: ") for left in result.report.left)
