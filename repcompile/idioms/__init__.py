"""What people call a region: formulas of papers, and the language in which to write one's own."""

from repcompile.idioms.diverse import DIVERSE
from repcompile.idioms.language import (
    Formula,
    Idiom,
    Word,
    channelwise,
    conv,
    depthwise,
    idiom,
    layer,
    linear,
    many,
    maybe,
    name_of_branches,
    norm,
    pad,
    perhaps,
    pick,
    pointwise,
    pool,
    scale,
    shift,
    word,
)  # fmt: skip
from repcompile.idioms.layers import LAYERS
from repcompile.idioms.low_rank import LOW_RANK
from repcompile.idioms.mobile import MOBILE
from repcompile.idioms.residual import RESIDUAL

IDIOMS = (*LOW_RANK, *LAYERS, *MOBILE, *DIVERSE, *RESIDUAL)  # the last one that matches names the region

__all__ = [
    "IDIOMS", "Formula", "Idiom", "Word", "channelwise", "conv", "depthwise", "idiom", "layer", "linear", "many",
    "maybe",     "name_of_branches", "norm", "pad", "perhaps", "pick", "pointwise", "pool", "scale", "shift", "word",
]  # fmt: skip
