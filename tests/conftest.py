"""How much Hypothesis draws, and one thread for small tensors."""

from __future__ import annotations

import os

import torch
from hypothesis import HealthCheck, Phase, settings

# HYPOTHESIS_PROFILE=long draws thirty times as much. In CI the draws are the same every time.
settings.register_profile(
    "default",
    max_examples=60,
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("long", settings.get_profile("default"), max_examples=2000)
settings.register_profile("unshrunk", settings.get_profile("default"), phases=[Phase.explicit, Phase.generate])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

torch.set_num_threads(1)
