"""The fuzzer's short profile, the programs that once failed, and the fuzzer itself."""

import random
from pathlib import Path

import pytest
import torch

from tests.fuzz import report
from tests.fuzz.build import build, inputs_of, source
from tests.fuzz.check import EVERYTHING, EXPORTED, Outcome, check
from tests.fuzz.generate import generate
from tests.fuzz.operators.table import OPERATORS
from tests.fuzz.program import Program, from_json, to_json, without
from tests.fuzz.saved import saved
from tests.fuzz.shrink import shrunk, simplifications

CHUNKS, EACH = 4, 50  # programs of a default run
SAVED = saved()


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_random_programs(chunk: int) -> None:
    tally = report.tally_of(range(1 + chunk * EACH, 1 + (chunk + 1) * EACH))
    assert not tally.failures
    assert tally.fused > EACH // 4


@pytest.mark.parametrize("name", SAVED)
def test_what_once_failed(name: str) -> None:
    assert not check(SAVED[name], {EXPORTED} if EXPORTED in name else EVERYTHING).failure


@pytest.mark.parametrize("seed", range(20))
def test_a_program_is_the_same_in_json(seed: int) -> None:
    program = generate(seed)
    assert from_json(to_json(program)) == program == generate(seed)
    assert source(from_json(to_json(program))) == source(program)


@pytest.mark.parametrize("seed", range(20))
def test_a_program_runs_in_both_calls(seed: int) -> None:
    program = generate(seed)
    for call in (0, 1):
        with torch.no_grad():
            build(program)(*inputs_of(program, call))


def test_steps_can_be_dropped() -> None:
    for seed in range(20):
        program = generate(seed)
        index = random.Random(seed).randrange(len(program.steps))
        smaller = without(program, index)
        assert smaller is None or len(smaller.steps) == len(program.steps) - 1


def test_every_operator_is_drawn() -> None:
    seen = {step.op for seed in range(400) for step in generate(seed).steps}
    assert seen == set(OPERATORS)


def test_a_failure_shrinks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that is wrong about leaky ReLUs would be found, and told in one step."""
    wanted = next(p for p in map(generate, range(100)) if len(p.steps) > 4 and any(s.op == "pool" for s in p.steps))

    def broken(program: Program, shares: object = None) -> Outcome:
        fails = any(step.op == "pool" for step in program.steps)
        return Outcome("differs plain: by 1" if fails else "")

    monkeypatch.setattr("tests.fuzz.shrink.check", broken)
    program, failure = shrunk(wanted, "differs plain: by 2")
    assert [step.op for step in program.steps] == ["pool"]
    assert failure == "differs plain: by 1"
    assert not any(len(simpler.steps) < 1 for simpler in simplifications(program))


def test_the_page_keeps_what_is_around_the_section(tmp_path: Path) -> None:
    page = tmp_path / "trust.md"
    page.write_text("# Trust\n\nbefore\n")
    tally = report.tally_of(range(3))
    for _ in range(2):
        report.write(report.section(tally, 60.0, "command"), page)
    text = page.read_text()
    assert text.count(report.START) == text.count(report.END) == 1
    assert "before" in text
    assert "| programs | 3 of " in text
