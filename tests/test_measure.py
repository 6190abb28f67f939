"""Counting and timing, against models that can be counted by hand."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repcompile import fuse
from repcompile.measure import Measure, latencies, measure


class Tiny(nn.Module):
    """Five operators that compute, around views that do not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)  # 4 x 3 x 9 = 108 weights
        self.norm = nn.BatchNorm2d(4)  # 4 + 4
        self.head = nn.Linear(4, 2)  # 8 + 2

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))  # three operators
        x = x.flatten(2).transpose(1, 2).contiguous().permute(0, 2, 1)
        return self.head(x.mean(-1).detach())  # two more


def test_a_model_counted_by_hand() -> None:
    got = measure(Tiny().eval(), [torch.zeros(1, 3, 5, 7)])
    assert got == Measure(operators=5, norms=1, macs=35 * 108 + 8, parameters=108 + 8 + 10)


def test_a_fused_model_counted_by_hand() -> None:
    got = measure(fuse(Tiny().eval()), [torch.zeros(2, 3, 5, 7)])
    assert got == Measure(operators=4, norms=0, macs=2 * (35 * 108 + 8), parameters=108 + 4 + 10)


def test_instance_norm_is_no_batch_norm() -> None:
    """It runs the same operator, by the statistics of its input; so does a weight that is standardized."""
    model = nn.Sequential(nn.InstanceNorm2d(3), nn.BatchNorm2d(3), nn.BatchNorm2d(3, track_running_stats=False))
    assert measure(model.eval(), [torch.randn(2, 3, 5, 5)]).norms == 1


def test_views_and_copies_are_not_counted() -> None:
    class Moves(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(2, -1).t().contiguous().clone()[:3].unsqueeze(0).expand(2, 3, 2).detach()

    assert measure(Moves().eval(), [torch.zeros(4, 3)]) == Measure(0, 0, 0, 0)


def test_in_place_operators_count() -> None:
    assert measure(nn.ReLU(inplace=True).eval(), [torch.zeros(3)]).operators == 1


def test_depthwise_multiply_accumulates() -> None:
    """One input channel for each output channel."""
    conv = nn.Conv2d(6, 6, 3, stride=2, groups=6).eval()
    assert measure(conv, [torch.zeros(2, 6, 9, 9)]).macs == 2 * 16 * 6 * 9


def test_a_view_of_a_parameter_handed_to_a_module() -> None:
    """torch's own FlopCounterMode asks such a view for its gradient, which it has none of under `no_grad`."""

    class Sum(nn.Module):
        def forward(self, x: Tensor, token: Tensor) -> Tensor:
            return x + token

    class Token(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.sum = nn.Parameter(torch.zeros(1, 3)), Sum()

        def forward(self, x: Tensor) -> Tensor:
            return self.sum(x, self.token.expand(x.shape[0], -1))

    assert measure(Token().eval(), [torch.zeros(2, 3)]) == Measure(1, 0, 0, 3)


def test_measuring_leaves_no_gradient_and_no_mode_behind() -> None:
    model = Tiny().eval()
    measure(model, [torch.zeros(1, 3, 5, 7)])
    assert not model.training
    assert torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_latencies_take_turns() -> None:
    calls: list[str] = []

    class Named(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, x: Tensor) -> Tensor:
            calls.append(self.name)
            return x

    times = latencies([Named("a"), Named("b"), Named("c")], [torch.zeros(1)], rounds=3)
    assert len(times) == 3
    assert all(seconds > 0 for seconds in times)
    assert calls == ["a", "b", "c"] * (3 + 2)  # two rounds warm up
