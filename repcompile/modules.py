"""The modules that emission needs beyond torch.nn's own."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.jit._trace import is_tracing

MAPS_KEPT = 8  # input sizes whose border map is remembered


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


class BorderConv(nn.Module):
    """A convolution whose bias met zero padding: y = conv(x) + border * 1~, with the indicator image 1~ of x.

    conv: zero-padded.  border: (c_out, 1, *sizes), a kernel for the indicator image.
    pads: zeros put around the image first, as `F.pad` takes them; empty where conv pads by itself.
    The second term depends on the input's size only; without gradients it is computed once per size, and again when
    `border` changes (writes through `.data`, which torch does not count, go unnoticed).
    """

    def __init__(self, conv: nn.Module, border: Tensor, pads: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.conv = conv
        self.border = nn.Parameter(border)
        self.pads = pads
        self._maps: dict[Any, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        edge = self._border_map(x)
        return self.conv(self._padded(x)) + (edge if x.dim() == edge.dim() else edge[0])

    def forget(self) -> None:
        """Drop the maps computed so far."""
        self._maps.clear()

    def extra_repr(self) -> str:
        return f"pads={self.pads}" if self.pads else ""

    def _padded(self, x: Tensor) -> Tensor:
        return F.pad(x, self.pads) if self.pads else x

    def _border_map(self, x: Tensor) -> Tensor:
        # A graph that is being recorded must compute the map, not keep one of this size.
        recorded = torch.compiler.is_compiling() or is_tracing() or type(x) is not Tensor
        if recorded or self._learns() or self.border.is_inference():
            return self._computed(x)
        sizes = tuple(x.shape[x.dim() + 2 - self.border.dim() :])
        version = (self.border.data_ptr(), self.border._version, torch.is_inference_mode_enabled())
        key = (sizes, x.dtype, x.device, version)
        if key not in self._maps:
            while len(self._maps) >= MAPS_KEPT:
                self._maps.pop(next(iter(self._maps)), None)
            self._maps[key] = self._computed(x)
        return self._maps[key]

    def _computed(self, x: Tensor) -> Tensor:
        conv: Any = self.conv
        image = self._padded(x.new_ones(1, 1, *x.shape[x.dim() + 2 - self.border.dim() :]))
        function = (F.conv1d, F.conv2d, F.conv3d)[self.border.dim() - 3]
        return function(image, self.border, None, conv.stride, conv.padding, conv.dilation)

    def _learns(self) -> bool:
        return torch.is_grad_enabled() and self.border.requires_grad

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}
