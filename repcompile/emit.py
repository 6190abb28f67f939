"""From a map and its numbers to the module that computes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from repcompile.affine import Affine
from repcompile.compare import largest_of
from repcompile.errors import Inexact
from repcompile.modules import BorderConv, ChannelAffine, Mapped, ValuePad
from repcompile.values import Values

CONVOLUTIONS: Sequence[Any] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED: Sequence[Any] = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
EPS = torch.finfo(torch.float64).eps
ROUNDINGS = 256
PADS: Mapping[str, Sequence[Any]] = {
    "zeros": (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d),
    "reflect": (nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
    "replicate": (nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
    "circular": (nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
}


def emit(x: Affine, values: Values) -> nn.Module:
    """A module in float64 that computes `x`: Linear, Conv, a per-channel map, or a convolution with a border map.

    Without spatial axes it acts on the last axis, with n of them on (batch, c_in, *spatial). It may share memory with
    `values`; `cast` makes the parameters its own.
    """
    with torch.no_grad():
        if x.is_diagonal:
            return _channel_affine(x, values)
        if not x.axes:
            return _linear(x, values)
        values = _settled(x, values)
        if x.spreads:
            return _transposed(x, values)
        pad, conv = _convolution(x, values)
        if values.border is not None and _has_border(values):
            value = _value_outside(x, values) if x.reads_less else None
            if value is not None:
                return _padded_with(x, values, value)
            return BorderConv(conv, values.border, () if isinstance(pad, nn.Identity) else _pads(x))
        return conv if isinstance(pad, nn.Identity) else nn.Sequential(pad, conv)


def _has_border(values: Values) -> bool:
    """Whether the border term is more than what rounding leaves of constants that cancel, as in DBB's padding."""
    if values.border is None:
        return False
    constant = 0.0 if values.bias is None else values.bias.abs().max().item()
    return values.border.abs().max().item() > ROUNDINGS * EPS * constant


def _value_outside(x: Affine, values: Values) -> Tensor | None:
    """The input v, one number for each channel, that the border term makes of no account: kernel v = -border.

    With v around the image in place of zeros, every tap outside contributes what it does inside less its border term,
    so that the sum of the border's taps is a bias. None if no v does.
    """
    assert values.border is not None
    kernel = values.kernel.unflatten(0, (x.groups, -1)).movedim(2, -1)  # (g, c_out / g, *sizes, c_in / g)
    wanted = -values.border[:, 0].unflatten(0, (x.groups, -1))
    matrix, right = kernel.flatten(1, -2), wanted.flatten(1)[..., None]
    value = torch.linalg.lstsq(matrix, right).solution
    if not value.isfinite().all():
        return None
    scale = (matrix.abs() @ value.abs()).max() + right.abs().max()
    fits = (matrix @ value - right).abs().max() <= ROUNDINGS * EPS * scale
    return value.flatten() if fits else None


def _padded_with(x: Affine, values: Values, value: Tensor) -> nn.Module:
    """`value` around the image, and a convolution that does not pad."""
    assert values.border is not None
    bias = values.border.flatten(1).sum(1)
    inside = replace(x, axes=tuple(replace(axis, lo=0, hi=0) for axis in x.axes))
    _, conv = _convolution(inside, Values(values.kernel, bias if values.bias is None else values.bias + bias))
    return nn.Sequential(ValuePad(value.reshape(-1, *[1] * len(x.axes)), _pads(x)), conv)


def _transposed(x: Affine, values: Values) -> nn.Module:
    """A transposed convolution, and a crop where torch's pads alike on both sides."""
    if not x.has_operator:
        raise Inexact("no transposed convolution of torch's reads its input like that")
    extra, native = [axis.hi - axis.lo for axis in x.axes], x.ends_evenly
    conv = TRANSPOSED[len(x.axes) - 1](
        x.c_in,
        x.c_out,
        kernel_size=[axis.size for axis in x.axes],
        stride=[axis.up for axis in x.axes],
        padding=[axis.span - (axis.lo if native else max(axis.lo, axis.hi)) for axis in x.axes],
        output_padding=extra if native else 0,
        groups=x.groups,
        bias=values.bias is not None,
        dilation=[axis.dilation for axis in x.axes],
        device="meta",
    )
    _filled(conv, _turned(values.kernel, x.groups), values.bias)
    if _has_border(values) and native:
        assert values.border is not None
        return BorderConv(conv, _turned(values.border, 1))
    if _has_border(values):
        raise Inexact("a cropped transposed convolution behind a bias")
    crops = [crop for a in reversed(x.axes) for crop in (a.lo - max(a.lo, a.hi), a.hi - max(a.lo, a.hi))]
    return conv if native else nn.Sequential(conv, PADS["zeros"][len(x.axes) - 1](tuple(crops)))


def _turned(kernel: Tensor, groups: int) -> Tensor:
    """A convolution's kernel as torch's transposed convolutions have it."""
    turned = kernel.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    return turned.flip(*range(2, kernel.dim()))


def _settled(x: Affine, values: Values) -> Values:
    """Where no tap sees zeros from outside, the indicator is one everywhere and the border term a bias."""
    if values.border is None or (x.pads and x.mode == "zeros"):
        return values
    total = values.border.flatten(1).sum(1)
    return Values(values.kernel, total if values.bias is None else values.bias + total)


def cast(module: nn.Module, like: tuple[Tensor, ...]) -> nn.Module:
    """The module in the dtype, on the device, and with the `requires_grad` of the weights `like`.

    Raises Inexact if these do not agree, if a value does not fit the dtype, or if all are too small for its precision.
    """
    kinds = {(tensor.dtype, tensor.device) for tensor in like}
    if len(kinds) != 1:
        raise Inexact(f"its weights have {len(kinds)} dtypes or devices: {', '.join(sorted(map(str, kinds)))}")
    ((dtype, device),) = kinds
    for name, parameter in list(module.named_parameters()):
        rounded = parameter.detach().to(device=device, dtype=dtype, copy=True)
        largest, normal = largest_of(rounded), torch.finfo(dtype).tiny
        if not isfinite(largest) and not torch.equal(rounded.isfinite().cpu(), parameter.isfinite().cpu()):
            raise Inexact(f"folded values do not fit {dtype}")
        owner, _, field = name.rpartition(".")
        if field == "weight" and largest <= normal and 0.0 < largest_of(parameter.detach()) < normal:
            raise Inexact(f"folded values are all below the normal numbers of {dtype}")
        learns = any(tensor.requires_grad for tensor in like)
        setattr(module.get_submodule(owner), field, nn.Parameter(rounded, requires_grad=learns))
    for part in module.modules():
        if isinstance(part, Mapped):
            part.forget()
    return module.eval()


def _channel_affine(x: Affine, values: Values) -> nn.Module:
    shape = (x.c_out, *[1] * len(x.axes))
    bias = values.kernel.new_zeros(x.c_out) if values.bias is None else values.bias
    return ChannelAffine(values.kernel.reshape(shape), bias.reshape(shape))


def _linear(x: Affine, values: Values) -> nn.Module:
    linear = nn.Linear(x.c_in, x.c_out, bias=values.bias is not None, device="meta")
    kernel = values.kernel if x.groups == 1 else _dense(x, values.kernel)
    return _filled(linear, kernel, values.bias)


def _dense(x: Affine, kernel: Tensor) -> Tensor:
    return torch.block_diag(*kernel.unflatten(0, (x.groups, -1)))


def _convolution(x: Affine, values: Values) -> tuple[nn.Module, Any]:
    """(padding module, convolution); the convolution pads by itself where both sides are padded alike."""
    alike = all(axis.lo == axis.hi >= 0 for axis in x.axes)
    conv = CONVOLUTIONS[len(x.axes) - 1](
        x.c_in,
        x.c_out,
        kernel_size=[axis.size for axis in x.axes],
        stride=[axis.stride for axis in x.axes],
        padding=[axis.lo if alike else 0 for axis in x.axes],
        dilation=[axis.dilation for axis in x.axes],
        groups=x.groups,
        bias=values.bias is not None,
        padding_mode=x.mode if alike and x.pads else "zeros",
        device="meta",
    )
    return nn.Identity() if alike else _padding(x), _filled(conv, values.kernel, values.bias)


def _padding(x: Affine) -> nn.Module:
    """Padding first, then the crop: the order in which `Affine` defines them, unless it makes no difference."""
    pads = _pads(x)
    index = len(x.axes) - 1
    if x.pads_at_once:
        return PADS["zeros"][index](pads)
    layers: list[nn.Module] = []
    if x.pads:
        layers.append(PADS[x.mode][index](tuple(max(pad, 0) for pad in pads)))
    if min(pads) < 0:
        layers.append(PADS["zeros"][index](tuple(min(pad, 0) for pad in pads)))
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers)


def _pads(x: Affine) -> tuple[int, ...]:
    """As `F.pad` wants them: from the last axis to the first."""
    return tuple(pad for axis in reversed(x.axes) for pad in (axis.lo, axis.hi))


def _filled(module: nn.Module, kernel: Tensor, bias: Tensor | None) -> nn.Module:
    module.weight = nn.Parameter(kernel.contiguous())
    if bias is not None:
        module.bias = nn.Parameter(bias)
    return module
