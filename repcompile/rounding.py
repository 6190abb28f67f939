"""What rounding explains: a bound on the difference of two evaluations of one affine map.  Proof: docs/math.md, 10.

Operator by operator or folded, an evaluation adds up the same products of weights and inputs. A product goes through
so many roundings at most, each of which changes it by a factor 1 + d with |d| <= u, or its inverse. So the result is
off by at most (1 - u)^-count - 1 times the sum of the absolute values of all products (`fold.magnitude`).
"""

from __future__ import annotations

from math import expm1, log1p, prod

import torch
from torch import Tensor

from repcompile.affine import Affine, Compose, Concat, Gather, Leaf, Linear, Select, Spread, Sum, Unrolled

NARROW = (torch.float16, torch.bfloat16)  # sums of products are accumulated in float32
RESULTS = 8  # roundings of one operator outside of its sums: a batch norm makes gain and shift of its statistics


def explained(x: Affine | None, magnitude: Tensor, dtype: torch.dtype, operators: int, more: int = 0) -> Tensor:
    """What one evaluation of `x` in `dtype` may err by, operator by operator or folded, for each entry of its result.

    x: None for the same number everywhere.  magnitude: the sum of the absolute values of all products.
    operators: how many there are in a row at most.  more: sums beside those of `x`.
    """
    terms = more + (1 if x is None else terms_of(x) + x.weights // x.c_out)
    return growth(dtype, terms, RESULTS * (operators + 1)) * magnitude + terms * vanishing(dtype)


def unit(dtype: torch.dtype) -> float:
    """The largest relative error of rounding to nearest."""
    return torch.finfo(dtype).eps / 2


def growth(dtype: torch.dtype, terms: int, results: int = 0) -> float:
    """The largest relative change of a product that is rounded `terms` times in sums, and `results` times when stored.

    torch sums in the dtype itself, and in float32 where that is a narrow one (Higham 2002, sec. 3.1).
    """
    inside = torch.float32 if dtype in NARROW else dtype
    return expm1(-terms * log1p(-unit(inside)) - results * log1p(-unit(dtype)))


def vanishing(dtype: torch.dtype) -> float:
    """The largest absolute error of a result below the normal numbers; float16 alone is never flushed to zero."""
    info = torch.finfo(dtype)
    return info.tiny * (info.eps if dtype == torch.float16 else 1.0)


def terms_of(x: Affine) -> int:
    """How many sums a product goes through at most when `x` is evaluated operator by operator, or when it is folded."""
    return _terms(x, {})


def _terms(x: Affine, done: dict[int, int]) -> int:
    if id(x) not in done:
        done[id(x)] = _counted(x, done)
    return done[id(x)]


def _counted(x: Affine, done: dict[int, int]) -> int:
    """An inner product of n terms has n - 1 sums; its bias and its border term are one more each."""
    match x.parts:
        case Leaf(kernel, _, border):
            taps = prod(axis.size for axis in x.axes)
            return prod(kernel.shape[1:]) + 1 + (0 if border is None else taps)
        case Compose(outer, inner):
            return _terms(outer, done) + _terms(inner, done)
        case Sum(left, right):
            return max(_terms(left, done), _terms(right, done)) + 1
        case Concat(maps):
            return max(_terms(part, done) for part in maps)
        case Select():
            return 0
        case Spread(inner) | Gather(inner, _) | Linear(inner) | Unrolled(inner, _):
            return _terms(inner, done)
