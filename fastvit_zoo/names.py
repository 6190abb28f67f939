"""Names of weights: the published code's, which are ours, and how to recognise timm's and the deployed form's."""

import re
from collections.abc import Mapping

from torch import Tensor

DEPLOYED = re.compile(r"(^|\.)(reparam_conv|lkb_reparam)\.")  # a merged branch
STAGE_PART = re.compile(r"stages\.(\d)\.(downsample|pos_emb|blocks)\.")
PARTS = ("downsample", "pos_emb", "blocks")  # in the order in which a stage runs them

TIMM_WORDS = {
    "stem.": "patch_embed.",
    "final_conv.": "conv_exp.",
    "head.fc.": "head.",
    "conv_kxk.": "rbr_conv.",
    "conv_scale.": "rbr_scale.",
    "identity.": "rbr_skip.",
    "large_conv.": "lkb_origin.",
    "pos_enc.": "pe.",
    "mlp.": "convffn.",
    "se.fc1.": "se.reduce.",
    "se.fc2.": "se.expand.",
}


def deployed(name: str) -> bool:
    """Whether only the deployed form has a weight of this name."""
    return DEPLOYED.search(name) is not None


def from_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under the published code's names; a state dict that is not timm's comes back as it was.

    timm names a stage's parts apart, stages.<stage>.<part>; the published code numbers all parts through, network.<i>.
    """
    if not any(name.startswith("stages.") for name in state):
        return dict(state)
    found = {match.groups() for match in map(STAGE_PART.match, state) if match}
    order = sorted(found, key=lambda part: (part[0], PARTS.index(part[1])))
    prefixes = {f"stages.{stage}.{part}.": f"network.{i}." for i, (stage, part) in enumerate(order)}
    return {_renamed(name, prefixes): tensor for name, tensor in state.items()}


def _renamed(name: str, prefixes: Mapping[str, str]) -> str:
    if match := STAGE_PART.match(name):
        name = prefixes[match[0]] + name.removeprefix(match[0])
    for theirs, ours in TIMM_WORDS.items():
        name = re.sub(rf"(^|\.){re.escape(theirs)}", rf"\g<1>{ours}", name)
    return name.removesuffix(".gamma")
