"""The modules and functions that graphs need beyond torch's own."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.jit._trace import is_tracing
from torch.overrides import handle_torch_function, has_torch_function_unary

MAPS_KEPT = 8  # input sizes whose border map is remembered


def put(x: Tensor, index: Any, value: Any) -> Tensor:
    """What `x` is after `x[index] = value`; `x` itself stays as it is."""
    if has_torch_function_unary(x):  # whoever records operators records this one
        return handle_torch_function(put, (x,), x, index, value)
    result = x.clone()
    result[index] = value
    return result


def overwritten(x: Tensor, index: Any, value: Any) -> Tensor:
    """`x`, after `x[index] = value`."""
    if has_torch_function_unary(x):
        return handle_torch_function(overwritten, (x,), x, index, value)
    x[index] = value
    return x


def surrounded(x: Tensor, pads: tuple[int, ...], value: Tensor, rank: int) -> Tensor:
    """`F.pad`, and every side that was added overwritten with `value`, as an index of `rank` entries names it.

    pads: as `F.pad` takes them, >= 0.  value: one number for each channel, as it is broadcast.
    """
    if has_torch_function_unary(x):
        return handle_torch_function(surrounded, (x,), x, pads, value, rank)
    y = F.pad(x, pads)
    for place, width in enumerate(pads):
        if width:
            index = [slice(None)] * rank
            index[rank - 1 - place // 2] = slice(-width, None) if place % 2 else slice(0, width)
            y[tuple(index)] = value
    return y


def of_rank(x: Tensor, rank: int) -> Tensor:
    """`x` as it is.  Raises ValueError if it does not have `rank` axes, for which the model was fused."""
    if has_torch_function_unary(x):
        return handle_torch_function(of_rank, (x,), x, rank)
    if x.dim() != rank:
        raise ValueError(
            f"repcompile fused this model for inputs of which this value has {rank} axes; it has {x.dim()}: "
            f"{list(x.shape)}. Call it with as many (with a batch, maybe), or fuse it with example_inputs like these"
        )
    return x


class FixedDtype(nn.Module):
    """A tensor whose dtype the model itself has chosen: `.to` moves it to a device, and leaves its dtype alone."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value)
        self.value: Tensor

    def forward(self) -> Tensor:
        return self.value

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        before = self.value
        super()._apply(fn, recurse)
        if self.value.dtype != before.dtype:
            self.value = before.to(self.value.device)
        return self


class ChannelAffine(nn.Module):
    """y = weight x + bias, one number per channel.  weight, bias: (c, 1, ..) as the layout broadcasts them."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.bias, x, self.weight)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}"


class Mapped(nn.Module):
    """Adds a map that depends on the input's size and on `weight` alone.

    Without gradients the map is computed once per size, and again when the weight changes (writes through `.data`,
    which torch does not count, go unnoticed).  n_axes: spatial axes of the input.
    """

    __constants__ = ["n_axes"]  # noqa: RUF012 - as torch.jit.script wants it
    __jit_ignored_attributes__ = ["_maps"]  # noqa: RUF012

    def __init__(self, n_axes: int) -> None:
        super().__init__()
        self.n_axes = n_axes
        self._maps: dict[Any, tuple[Tensor, Tensor]] = {}  # with the weight: no other one gets its place in memory

    def map_of(self, image: Tensor) -> Tensor:
        """The map for an indicator image of one channel."""
        raise NotImplementedError

    @torch.jit.unused
    def forget(self) -> None:
        """Drop the maps computed so far."""
        self._maps.clear()

    @torch.jit.unused
    def remember_nothing(self) -> None:
        """Start with maps of its own, in a shallow copy."""
        self._maps = {}

    def computed(self, x: Tensor) -> Tensor:
        """The map for an image of the size of `x`, with a batch of one if `x` has a batch."""
        image = torch.ones_like(x.narrow(-1 - self.n_axes, 0, 1))
        return self.map_of(image[:1] if x.dim() == self.n_axes + 2 else image)

    @torch.jit.unused
    def remembered(self, x: Tensor, weight: Tensor) -> Tensor:
        """The same, computed once where it may be remembered."""
        if not isinstance(x, Tensor):  # torch.fx's proxy, which does not know its rank
            return self.map_of(torch.ones_like(x.narrow(-1 - self.n_axes, 0, 1)))
        if not _may_remember(x, weight):
            return self.computed(x)
        sizes = tuple(x.shape[x.dim() - self.n_axes :])
        version = (weight.data_ptr(), weight._version, torch.is_inference_mode_enabled())
        key = (sizes, x.dim(), x.dtype, x.device, version)
        kept = self._maps.get(key)
        if kept is None:
            for oldest in list(self._maps)[: 1 - MAPS_KEPT]:  # other threads do so, too
                self._maps.pop(oldest, None)
            made = self.computed(x.new_zeros(1).expand(*[1] * (x.dim() - len(sizes)), *sizes))
            kept = self._maps[key] = (made, weight.detach())
        return kept[0]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}


def _may_remember(x: Tensor, weight: Tensor) -> bool:
    """Not in what is being recorded or transformed, and not what gradients or autocast pass through."""
    recorded = torch.compiler.is_compiling() or is_tracing() or type(x) is not Tensor
    kind = x.device.type
    casts = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)  # meta has none
    transformed = torch._C._are_functorch_transforms_active() or casts
    learns = torch.is_grad_enabled() and weight.requires_grad
    return not (recorded or transformed or learns or weight.is_inference())


class ValuePad(Mapped):
    """Padding with another value for each channel.  value: (c, 1, ..), one axis for each of the image's.

    pads: as `F.pad` takes them, >= 0.
    """

    def __init__(self, value: Tensor, pads: tuple[int, ...]) -> None:
        super().__init__(value.dim() - 1)
        self.value = nn.Parameter(value)
        self.pads = pads

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # pyright: ignore[reportPrivateImportUsage]
            return F.pad(x, self.pads) + self.computed(x)
        return F.pad(x, self.pads) + self.remembered(x, self.value)

    def map_of(self, image: Tensor) -> Tensor:
        """The value outside, and zeros inside."""
        return self.value * (1.0 - F.pad(image, self.pads))

    def extra_repr(self) -> str:
        return f"pads={self.pads}"


class BorderConv(Mapped):
    """A convolution whose bias met zero padding: y = conv(x) + border * 1~, with the indicator image 1~ of x.

    conv: zero-padded, or transposed.  border: (c_out, 1, *sizes), a kernel for the indicator image; (1, c_out, *sizes)
    for a transposed one, as torch has it.
    pads: zeros put around the image first, as `F.pad` takes them; empty where conv pads by itself.
    """

    __constants__ = ["n_axes", "pads_first"]  # noqa: RUF012 - as torch.jit.script wants it

    def __init__(self, conv: nn.modules.conv._ConvNd, border: Tensor, pads: tuple[int, ...] = ()) -> None:
        super().__init__(border.dim() - 2)
        self.conv = conv
        self.stride, self.dilation = conv.stride, conv.dilation
        self.padding: Any = conv.padding
        self.transposed, self.output_padding = conv.transposed, conv.output_padding
        self.border = nn.Parameter(border)
        self.pads = pads
        self.pads_first = len(pads) > 0

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # pyright: ignore[reportPrivateImportUsage]
            return self.conv(self._padded(x)) + self.computed(x)
        return self.conv(self._padded(x)) + self.remembered(x, self.border)

    def extra_repr(self) -> str:
        return f"pads={self.pads}" if self.pads else ""

    def _padded(self, x: Tensor) -> Tensor:
        return F.pad(x, self.pads) if self.pads_first else x

    def map_of(self, image: Tensor) -> Tensor:
        """The border kernel on an indicator image of one channel."""
        image = self._padded(image)
        if self.transposed:
            return self._transposed(image)
        if self.n_axes == 1:
            return F.conv1d(image, self.border, None, self.stride, self.padding, self.dilation)
        if self.n_axes == 2:
            return F.conv2d(image, self.border, None, self.stride, self.padding, self.dilation)
        return F.conv3d(image, self.border, None, self.stride, self.padding, self.dilation)

    def _transposed(self, image: Tensor) -> Tensor:
        extra = self.output_padding
        if self.n_axes == 1:
            return F.conv_transpose1d(image, self.border, None, self.stride, self.padding, extra, 1, self.dilation)
        if self.n_axes == 2:
            return F.conv_transpose2d(image, self.border, None, self.stride, self.padding, extra, 1, self.dilation)
        return F.conv_transpose3d(image, self.border, None, self.stride, self.padding, extra, 1, self.dilation)


MODULES = (ChannelAffine, ValuePad, BorderConv)
