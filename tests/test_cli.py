"""The command line: what it prints, and the sentence and exit code where it cannot."""

import re
from typing import Any

import pytest
from torch import Tensor, nn

from repcompile.cli import main


class Block(nn.Module):
    """conv, norm, relu."""

    def __init__(self, channels: int = 4, kernel: int = 3, bias: bool = True, slope: float | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, kernel, bias=bias)
        self.norm = nn.BatchNorm2d(channels)
        self.act = nn.ReLU() if slope is None else nn.LeakyReLU(slope)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


def block(*args: Any, **kwargs: Any) -> nn.Module:
    """What the command line calls; its argument types are checked here."""
    GIVEN[:] = [args, kwargs]
    return Block(*args, **kwargs)


def not_a_model(*args: Any) -> str:
    return "a string"


GIVEN: list[Any] = []
HERE = __name__


def words(text: str) -> str:
    """Without the line breaks of a narrow terminal."""
    return re.sub(r"\s+", " ", text)


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    """stderr of a command that failed: one sentence, no traceback, and nothing on stdout."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return words(captured.err)


# -- explain -----------------------------------------------------------------------------------------------------------


def test_explain(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", f"{HERE}:block"]) == 0
    out = capsys.readouterr().out
    assert "Block: 1 regions fused, 2 operators into 1" in out
    assert "ConvBN" in out


def test_explain_passes_arguments_with_their_types(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", f"{HERE}:block", "8", "1", "bias=false", "slope=0.5"]) == 0
    assert GIVEN == [(8, 1), {"bias": False, "slope": 0.5}]
    assert main(["explain", f"{HERE}:block", "slope=none", "channels=2"]) == 0
    assert GIVEN == [(), {"slope": None, "channels": 2}]
    assert main(["explain", f"{HERE}:block", "kernel=wide"]) == 1
    assert GIVEN == [(), {"kernel": "wide"}]


@pytest.mark.parametrize("choice", [["--skip", "norm"], ["--only", "act"], ["--only", "conv", "--skip", "**"]])
def test_explain_with_parts_that_stay(choice: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", f"{HERE}:block", *choice]) == 0
    out = capsys.readouterr().out
    assert "Block: 0 regions fused" in out
    assert "skipped by the caller" in out


def test_a_glob_that_names_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", f"{HERE}:block", "--skip", "conv", "--skip", "nrom"]) == 1
    assert "skip: 'nrom' names no module of the model, which has conv, norm, act" in sentence(capsys)


@pytest.mark.filterwarnings("ignore")
def test_explain_a_model_of_torchvision(capsys: pytest.CaptureFixture[str]) -> None:
    """Every one of ResNet-18's twenty batch norms."""
    pytest.importorskip("torchvision")
    assert main(["explain", "torchvision.models:resnet18"]) == 0
    out = capsys.readouterr().out
    assert "ResNet: 20 regions fused, 40 operators into 20" in out
    assert re.search(r"ConvBN +20 +40 -> 20", out)


# -- what cannot be done -----------------------------------------------------------------------------------------------


def test_a_factory_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", f"{HERE}:blok"]) == 1
    assert sentence(capsys).startswith(f"repcompile: '{HERE}:blok' cannot be imported: ")


def test_a_package_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "no_such_package.models:resnet18"]) == 1
    assert "'no_such_package.models:resnet18' cannot be imported" in sentence(capsys)


@pytest.mark.parametrize("spelling", ["torchvision.models.resnet18", "torchvision.models:", "resnet18"])
def test_a_bad_spelling(spelling: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", spelling]) == 1
    assert f"{spelling!r} names no function: write package.module:function" in sentence(capsys)


def test_an_empty_module_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", ":resnet18"]) == 1
    assert "write package.module:function" in sentence(capsys)


def test_a_factory_that_returns_no_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", f"{HERE}:not_a_model"]) == 1
    assert "torch.nn.Module" in sentence(capsys)


def test_a_factory_that_refuses_its_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", f"{HERE}:block", "chanels=8"]) == 1
    assert "chanels" in sentence(capsys)


def test_an_unknown_variant(capsys: pytest.CaptureFixture[str]) -> None:
    """The zoo's own sentence, with the nearest names."""
    assert main(["demo", "--model", "fastvit_t9"]) == 1
    message = sentence(capsys)
    assert "there is no variant 'fastvit_t9'" in message
    assert "did you mean fastvit_t8" in message


def test_a_checkpoint_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--checkpoint", "no/such/file.pth"]) == 1
    assert "'no/such/file.pth': there is no such file" in sentence(capsys)


def test_an_image_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--image", "photograph"]) == 1
    assert "'photograph' names no function" in sentence(capsys)


@pytest.mark.parametrize("arguments", [[], ["frobnicate"], ["explain"], ["demo", "--no-such-option"]])
def test_usage_errors(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert "usage: repcompile" in capsys.readouterr().err


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(["--help"])
    assert error.value.code == 0
    out = capsys.readouterr().out
    assert "demo" in out
    assert "explain" in out
