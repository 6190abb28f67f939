"""The table of FastViT variants: everything that distinguishes one from another."""

from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import Literal

from fastvit_zoo.errors import ZooError

Mixer = Literal["repmixer", "attention"]


@dataclass(frozen=True, slots=True)
class Config:
    """One variant; the tuples have one entry per stage, four stages at strides 4, 8, 16 and 32.

    depths: blocks.  dims: channels.  mlp_ratio: hidden channels of the feed-forward part over its channels.
    mixers: how the blocks of a stage mix positions.  encodings: whether a conditional positional encoding comes first.
    layer_scale: initial value of every layer scale.
    Source: arXiv 2303.14189 and the published code.
    """

    name: str
    depths: tuple[int, int, int, int]
    dims: tuple[int, int, int, int]
    mlp_ratio: int
    mixers: tuple[Mixer, Mixer, Mixer, Mixer] = ("repmixer", "repmixer", "repmixer", "repmixer")
    encodings: tuple[bool, bool, bool, bool] = (False, False, False, False)
    layer_scale: float = 1e-5

    def __post_init__(self) -> None:
        if any(dim % 32 for dim, mixer in zip(self.dims, self.mixers, strict=True) if mixer == "attention"):
            raise ZooError(f"Config '{self.name}': dims={self.dims}; a stage of attention needs a multiple of 32")


def config_of(name: str) -> Config:
    """The variant called `name`. Raises ZooError, with the nearest names, if there is none."""
    if name in VARIANTS:
        return VARIANTS[name]
    near = get_close_matches(name, VARIANTS, n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else "."
    raise ZooError(f"create_model: there is no variant '{name}'{hint} The variants are {', '.join(VARIANTS)}.")


def list_models() -> list[str]:
    """The names that `create_model` knows, from the smallest variant to the largest."""
    return list(VARIANTS)


def _with_attention(
    name: str, depths: tuple[int, int, int, int], dims: tuple[int, int, int, int], layer_scale: float = 1e-5
) -> Config:
    """A variant whose last stage is positional encoding and attention."""
    return Config(
        name,
        depths,
        dims,
        mlp_ratio=4,
        mixers=("repmixer", "repmixer", "repmixer", "attention"),
        encodings=(False, False, False, True),
        layer_scale=layer_scale,
    )


VARIANTS = MappingProxyType(
    {
        config.name: config
        for config in (
            Config("fastvit_t8", (2, 2, 4, 2), (48, 96, 192, 384), mlp_ratio=3),
            Config("fastvit_t12", (2, 2, 6, 2), (64, 128, 256, 512), mlp_ratio=3),
            Config("fastvit_s12", (2, 2, 6, 2), (64, 128, 256, 512), mlp_ratio=4),
            _with_attention("fastvit_sa12", (2, 2, 6, 2), (64, 128, 256, 512)),
            _with_attention("fastvit_sa24", (4, 4, 12, 4), (64, 128, 256, 512)),
            _with_attention("fastvit_sa36", (6, 6, 18, 6), (64, 128, 256, 512), layer_scale=1e-6),
            _with_attention("fastvit_ma36", (6, 6, 18, 6), (76, 152, 304, 608), layer_scale=1e-6),
        )
    }
)
