"""`randomize`: nothing that it touches stays as in a fresh model, and nothing else changes."""

import torch
from torch import Tensor, nn

from repcompile import fuse
from repcompile.testing import randomize


class Scaled(nn.Module):
    """A layer scale, a table of positions, and a counter beside layers of torch's own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.scale = nn.Parameter(torch.full((4, 1, 1), 1e-5))
        self.table = nn.Parameter(torch.zeros(4, 5))
        self.steps = nn.Parameter(torch.arange(3), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.norm(self.conv(x))


def test_statistics_gains_and_shifts_are_drawn() -> None:
    norm = nn.BatchNorm2d(64)
    assert randomize(norm) is norm
    assert norm.running_mean is not None
    assert norm.running_var is not None
    for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
        assert tensor.unique().numel() == 64
    assert 0.5 <= norm.running_var.min() < 0.7 < 1.3 < norm.running_var.max() <= 1.5
    assert 0.5 <= norm.weight.min() < 0.7 < 1.3 < norm.weight.max() <= 1.5
    assert 0.1 < norm.running_mean.std() < 0.5
    assert 0.1 < norm.bias.std() < 0.5


def test_layer_scales_are_drawn_and_nothing_else() -> None:
    model = Scaled()
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    randomize(model)
    changed = {name for name, tensor in model.named_parameters() if not torch.equal(tensor, before[name])}
    assert changed == {"norm.weight", "norm.bias", "scale"}
    assert 0.25 <= model.scale.min() < model.scale.max() <= 0.75


def test_every_kind_of_batch_norm() -> None:
    for kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm):
        norm = randomize(kind(4))
        assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
        assert norm.running_mean is not None
        assert norm.running_mean.abs().min() > 0


def test_a_norm_without_weights_or_statistics() -> None:
    norm = nn.BatchNorm2d(4, affine=False)
    randomize(norm)
    assert norm.running_mean is not None
    assert norm.running_mean.abs().min() > 0
    bare = nn.BatchNorm2d(4, affine=False, track_running_stats=False)
    assert randomize(bare) is bare


def test_the_seed_decides() -> None:
    same, other = randomize(Scaled(), 1).state_dict(), randomize(Scaled(), 2).state_dict()
    again = randomize(Scaled(), 1).state_dict()
    for key in ("norm.weight", "norm.bias", "norm.running_mean", "norm.running_var", "scale"):
        assert torch.equal(again[key], same[key])
        assert not torch.equal(other[key], same[key])


def test_the_global_generator_is_left_alone() -> None:
    model = Scaled()
    before = torch.random.get_rng_state()
    randomize(model)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_gradients_and_modes_stay() -> None:
    model = randomize(Scaled())
    assert model.training
    assert model.get_parameter("norm.weight").requires_grad
    assert model.get_parameter("norm.weight").grad_fn is None


def test_an_error_shows_in_a_randomized_model() -> None:
    """Dropping the norm and the scale goes unnoticed in a fresh model only."""
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    fresh, drawn = Scaled().eval(), randomize(Scaled()).eval()
    with torch.no_grad():
        assert (fresh(x) - 1e-5 * fresh.conv(x)).abs().max() < 1e-9
        assert (drawn(x) - drawn.get_submodule("conv")(x)).abs().max() > 0.1
        assert (drawn(x) - fuse(drawn)(x)).abs().max() < 1e-5
