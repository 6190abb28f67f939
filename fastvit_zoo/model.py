"""FastViT (Vasu et al. 2023, arXiv 2303.14189) in its training form."""

from itertools import accumulate
from pathlib import Path

from torch import Tensor, nn

from fastvit_zoo.blocks import AttentionBlock, RepMixerBlock, init_weights
from fastvit_zoo.config import Config, Mixer, config_of
from fastvit_zoo.errors import ZooError
from fastvit_zoo.layers import MobileOneBlock, PatchEmbed, PositionalEncoding
from fastvit_zoo.weights import load_weights

BLOCKS: dict[Mixer, type[RepMixerBlock] | type[AttentionBlock]] = {
    "repmixer": RepMixerBlock,
    "attention": AttentionBlock,
}


def create_model(
    name: str,
    num_classes: int = 1000,
    in_chans: int = 3,
    drop_path_rate: float = 0.0,
    checkpoint: str | Path | None = None,
) -> "FastViT":
    """The variant called `name`, freshly initialised or with the weights of `checkpoint`, in training mode.

    drop_path_rate: of the last block; the others' grow linearly up to it; in [0, 1).
    checkpoint: a .safetensors, .pth, .pt or .pth.tar file of the training form, or "hf-hub:org/repo[/file]".
    Raises ZooError if a value cannot be used or the weights do not fit.
    """
    config = config_of(name)
    if num_classes < 1 or in_chans < 1:
        raise ZooError(
            f"create_model('{name}'): num_classes={num_classes}, in_chans={in_chans}; both must be at least 1."
        )
    if not 0 <= drop_path_rate < 1:
        raise ZooError(f"create_model('{name}'): drop_path_rate={drop_path_rate}; it must lie in [0, 1).")
    model = FastViT(config, num_classes, in_chans, drop_path_rate)
    if checkpoint is not None:
        load_weights(model, checkpoint)
    return model


class FastViT(nn.Module):
    """Stem, four stages, depthwise expansion, mean over the image, linear head.

    x: (B, in_chans, H, W), H and W multiples of 32 -> logits (B, num_classes).
    """

    def __init__(self, config: Config, num_classes: int = 1000, in_chans: int = 3, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        last = config.dims[-1]
        self.patch_embed = stem(in_chans, config.dims[0])
        self.network = nn.ModuleList(stages(config, drop_path_rate))
        self.conv_exp = MobileOneBlock(last, 2 * last, 3, 1, 1, groups=last, use_se=True)
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(2 * last, num_classes)
        init_weights(self.head)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)  # (B, dims[0], H / 4, W / 4)
        for part in self.network:
            x = part(x)
        x = self.conv_exp(x)  # (B, 2 * dims[3], H / 32, W / 32)
        return self.head(self.gap(x).flatten(1))


def stem(in_channels: int, channels: int) -> nn.Sequential:
    """A quarter of the resolution: (B, in_channels, H, W) -> (B, channels, H / 4, W / 4)."""
    return nn.Sequential(
        MobileOneBlock(in_channels, channels, 3, stride=2, padding=1),
        MobileOneBlock(channels, channels, 3, stride=2, padding=1, groups=channels),
        MobileOneBlock(channels, channels, 1),
    )


def stages(config: Config, drop_path_rate: float) -> list[nn.Module]:
    """The parts in order: before each stage but the first a PatchEmbed, then its positional encoding if it has one."""
    rates = drop_path_rates(config.depths, drop_path_rate)
    parts: list[nn.Module] = []
    for stage, channels in enumerate(config.dims):
        if stage > 0:
            parts.append(PatchEmbed(config.dims[stage - 1], channels))
        if config.encodings[stage]:
            parts.append(PositionalEncoding(channels))
        block, hidden = BLOCKS[config.mixers[stage]], config.mlp_ratio * channels
        parts.append(nn.Sequential(*(block(channels, hidden, rate, config.layer_scale) for rate in rates[stage])))
    return parts


def drop_path_rates(depths: tuple[int, ...], rate: float) -> list[list[float]]:
    """For each stage, its blocks' rates: block i of n over the whole network has rate * i / (n - 1)."""
    last = sum(depths) - 1
    starts = accumulate(depths, initial=0)
    return [[rate * (start + i) / last for i in range(depth)] for start, depth in zip(starts, depths, strict=False)]
