"""`repcompile demo` from the command line to the last line it prints, on the real photograph."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fastvit_zoo import create_model
from fastvit_zoo.data import class_names, preprocessed_photograph
from repcompile import demo
from repcompile.cli import main
from repcompile.testing import randomize

pytest.importorskip("timm")
pytest.importorskip("skimage")
pytestmark = pytest.mark.timm


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """No line is broken."""
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a T8, with class 281 far ahead of the others."""
    torch.manual_seed(0)
    model = randomize(create_model("fastvit_t8"))
    with torch.no_grad():
        model.get_parameter("head.bias")[281] += 20.0
    file = tmp_path_factory.mktemp("weights") / "t8.pth"
    torch.save(model.state_dict(), file)
    return file


def row(text: str, name: str) -> list[str]:
    """The columns of a row of the table that compares the two forms."""
    table = text[text.index("training form") :]
    (line,) = [line for line in table.splitlines() if line.startswith(name)]
    return re.split(r" {2,}", line.removeprefix(name).strip())


def test_demo(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--model", "fastvit_t8"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("fastvit_t8, random weights and statistics\n")
    assert "FastViT: 40 regions fused" in out
    assert row(out, "operators") == ["241", "85", "0.35"]
    assert row(out, "batch norms") == ["70", "0", "0.00"]
    assert row(out, "parameters") == ["4.03 M", "3.99 M", "0.99"]
    assert row(out, "multiply-accumulates") == ["0.690 G", "0.685 G", "0.99"]
    assert all(re.fullmatch(r"\d+\.\d ms", column) for column in row(out, "latency")[:2])
    differences = re.findall(r"relative\s+(\d\.\de[-+]\d\d)", out)
    assert len(differences) == 2
    assert all(0 < float(difference) < 1e-5 for difference in differences)
    assert "probability" not in out  # of classes that random weights guess


def test_demo_with_a_checkpoint(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--model", "fastvit_t8", "--checkpoint", str(checkpoint)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("fastvit_t8, weights of ")
    table = out[out.index("probability") :].splitlines()[1:]
    rows = [re.split(r" {2,}", line.strip()) for line in table if line.strip()]
    assert len(rows) == 5
    assert rows[0][0] == class_names()[281] == "tabby, tabby cat"
    shares = [float(share.removesuffix(" %")) for _, share in rows]
    assert shares == sorted(shares, reverse=True)
    assert 0 < sum(shares) <= 100.3
    assert all(name in class_names() for name, _ in rows)


def test_a_checkpoint_of_another_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "other.pth"
    torch.save(nn.Linear(2, 3).state_dict(), file)
    assert main(["demo", "--checkpoint", str(file)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    message = re.sub(r"\s+", " ", captured.err)
    assert "has other names than the model: missing patch_embed.0" in message
    assert "unexpected weight, bias" in message


def test_a_file_that_is_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "broken.pth"
    file.write_text("no weights")
    assert main(["demo", "--checkpoint", str(file)]) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_the_comparison_itself() -> None:
    """The logits are the fused model's on the image, and every number is of these two models."""
    torch.manual_seed(0)
    model = randomize(create_model("fastvit_t8", num_classes=7)).eval()
    image: Tensor = preprocessed_photograph()[..., :64, :96]
    result = demo.run(model, image)
    with torch.no_grad():
        torch.testing.assert_close(result.logits, model(image), rtol=1e-4, atol=1e-5)
    before, after = result.measures
    assert before.norms > after.norms == 0
    assert before.operators > after.operators
    assert all(seconds > 0 for seconds in (*result.seconds, result.fuse_seconds))
    assert all(check.passed for check in result.checks)
    assert not model.training
