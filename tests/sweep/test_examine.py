"""The harness on models that can be judged by eye."""

from pathlib import Path

import torch
from torch import Tensor, nn

from tests.sweep.examine import examine
from tests.sweep.result import path_of, read, write
from tests.sweep.subject import Subject, images


class Block(nn.Module):
    """conv -> norm -> relu -> global norm that nothing can take."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.pool, self.last = nn.MaxPool2d(2), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[-1] < 20, "too wide"
        return torch.relu(self.last(self.pool(torch.relu(self.norm(self.conv(x))))))


class Choosy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("never\nagain")


def plain() -> Subject:
    shapes = ((2, 3, 8, 9), (1, 3, 9, 30), (1, 3, 12, 10), (1, 3, 6, 6))
    return Subject(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), [(images(*s),) for s in shapes])


def test_a_model_that_fuses(tmp_path: Path) -> None:
    result = examine("plain", plain)
    assert result.problems == ()
    assert result.sizes == ("2x3x8x9", "1x3x9x30")
    assert result.before is not None
    assert result.plain == result.informed
    assert result.plain is not None
    assert (result.before.operators, result.before.norms) == (3, 1)
    assert (result.plain.operators, result.plain.norms) == (2, 0)
    assert result.plain.price < result.before.price
    write(result, path_of("plain", tmp_path))
    assert read(path_of("plain", tmp_path)) == result


def test_inputs_that_the_model_refuses_are_left_out() -> None:
    shapes = ((1, 3, 30, 30), (1, 3, 9, 9))
    result = examine("block", lambda: Subject(Block(), [(images(*shape),) for shape in shapes]))
    assert result.sizes == ("1x3x9x9",)


def test_a_model_that_refuses_everything_is_skipped() -> None:
    result = examine("choosy", lambda: Subject(Choosy(), [(images(1, 3, 9, 9),)]))
    assert result.skipped == "the model itself does not run: ValueError: never"
