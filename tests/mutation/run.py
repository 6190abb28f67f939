"""Mutation testing: `python -m tests.mutation.run plan rules --ends 37`, or without names, of every group in `GROUPS`.

mutmut changes one thing at a time in a copy of the repository, and runs the tests that reach it. How many mutants the
tests see, and which ones they do not, is printed and written to build/mutation. Functions that run while the package
is imported have run before mutmut chooses a mutant: what survives there is tried again in a process of its own.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BUILD = Path("build", "mutation")
SURVIVORS = Path("tests", "mutation", "survivors.txt")
COPIED = ("repcompile", "fastvit_zoo", "tests", "docs", "README.md", "CHANGELOG.md", "Makefile", "pyproject.toml")
RULES = "channels conv emitted layout linear norm pad pointwise pool product rewriting ruleset shape wildcards".split()
GROUPS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # name -> files of repcompile, tests of theirs
    "affine": (("affine",), ("test_affine", "test_impulses", "test_emit", "test_fold")),
    "facts": (
        ("facts",),
        ("test_known", "test_trial", "test_facts", "test_regions", "test_sizes_as_arguments", "blocks"),
    ),
    "plan": (("plan",), ("test_plan",)),
    "emit": (("emit",), ("test_emit", "test_affine", "test_modules", "test_numbers")),
    "rewrite": (
        ("rewrite",),
        (
            *("test_rewrite", "test_compiler", "test_numbers", "test_guesses", "test_constants", "test_questions"),
            *("test_inplace", "test_hostile", "test_validation", "test_names", "test_regroup"),
        ),
    ),
    "rules": (
        tuple(f"rules/{name}" for name in RULES),
        (
            *("test_refusals", "test_rule_calls", "test_channels", "test_layouts", "test_ruleset", "test_known"),
            *("test_operators", "test_rules", "test_rewrites", "test_sizes_as_arguments", "test_report"),
            *("test_testing", "test_trial", "test_tuples", "test_floats", "test_numbers"),
        ),
    ),
}
SETTINGS = """
[tool.mutmut]
source_paths = ["repcompile"]
only_mutate = {files}
also_copy = ["fastvit_zoo", "docs", "README.md", "CHANGELOG.md", "Makefile"]
pytest_add_cli_args = {options}
pytest_add_cli_args_test_selection = {tests}
process_isolation = "forkserver"
track_dependencies = false
use_git_change_detection = false
"""
OPTIONS = ("-p", "no:xdist", "-p", "no:cacheprovider", "-W", "ignore")
# What a failure draws need not be made small: whether there is one is all that is asked.
ENVIRONMENT = {**os.environ, "CI": "1", "HYPOTHESIS_PROFILE": "unshrunk", "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
SEEN = ("killed", "timeout", "segfault")  # mutmut's words where a test noticed
UNTRIED = "not checked"
STRICT = re.compile(r",\s*(strict=\w+)?(?=\))")  # of a zip
IMPORTED = """
import os
os.environ["MUTANT_UNDER_TEST"] = "stats"
from mutmut.state import state
import repcompile
print(*state()._stats)
"""


@dataclass(frozen=True, slots=True)
class Verdicts:
    """Of the mutants of a group that were tried: name -> mutmut's word for what became of it."""

    group: str
    of: Mapping[str, str]

    def __str__(self) -> str:
        tried, seen = Counter[str](), Counter[str]()
        for mutant, verdict in self.of.items():
            file = mutant.rpartition(".")[0]
            tried[file] += 1
            seen[file] += verdict in SEEN
        lines = [f"{file}: {seen[file]} of {count} killed" for file, count in sorted(tried.items())]
        killed, count = sum(seen.values()), max(len(self.of), 1)
        return "\n".join([*lines, f"{self.group}: {killed} of {len(self.of)} killed ({killed / count:.1%})"])


def tried(name: str, ends: str, workers: int) -> Verdicts:
    """Try the mutants of a group whose numbers end in one of the digits."""
    _prepare(name)
    chosen = [f"*__mutmut_*{digit}" for digit in ends] if set(ends) != set("0123456789") else []
    _mutmut(name, "run", "--max-children", str(workers), *chosen)
    lines = _mutmut(name, "results", "--all", "true", read=True).splitlines()
    verdicts = dict(line.strip().split(": ", 1) for line in lines if ": " in line)
    verdicts = {mutant: verdict for mutant, verdict in verdicts.items() if verdict != UNTRIED}
    imported = _imported(name)
    again = [m for m, verdict in verdicts.items() if verdict not in SEEN and m.partition("__mutmut_")[0] in imported]
    with ThreadPoolExecutor(workers) as pool:
        verdicts.update(zip(again, pool.map(lambda mutant: _alone(name, mutant), again), strict=True))
    return Verdicts(name, verdicts)


def _imported(name: str) -> set[str]:
    """The functions that run while the package is imported, as mutmut names them."""
    command = [sys.executable, "-c", IMPORTED]
    done = subprocess.run(command, cwd=_folder(name) / "mutants", env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    return set(done.stdout.split())


def _alone(name: str, mutant: str) -> str:
    """What becomes of a mutant that is there before anything is imported."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", *OPTIONS, *_tests(name)]
    settings = {**ENVIRONMENT, "MUTANT_UNDER_TEST": mutant}
    done = subprocess.run(command, cwd=_folder(name) / "mutants", env=settings, stdout=subprocess.DEVNULL)
    return "killed" if done.returncode else "survived"


def _mutmut(name: str, *arguments: str, read: bool = False) -> str:
    """Run mutmut on the copy for a group; what it prints, if that is to be read."""
    program = Path(sys.executable).absolute().with_name("mutmut")
    output = subprocess.PIPE if read else None
    command = [program, *arguments]
    done = subprocess.run(command, cwd=_folder(name), env=ENVIRONMENT, stdout=output, text=True, check=read)
    return done.stdout or ""


def _folder(name: str) -> Path:
    return BUILD / name


def _tests(name: str) -> list[str]:
    return [f"tests/{test}.py" if "test_" in test else f"tests/{test}" for test in GROUPS[name][1]]


def _prepare(name: str) -> None:
    folder = _folder(name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for part in COPIED:
        source = Path(part)
        (shutil.copytree if source.is_dir() else shutil.copy2)(source, folder / part)
    files = [f"repcompile/{file}.py" for file in GROUPS[name][0]]
    for target in (folder / file for file in files):
        target.write_text(ast.unparse(ast.fix_missing_locations(_Undecorated().visit(ast.parse(target.read_text())))))
    settings = {"files": files, "options": list(OPTIONS), "tests": _tests(name)}
    with (folder / "pyproject.toml").open("a") as file:
        file.write(SETTINGS.format_map({key: json.dumps(value) for key, value in settings.items()}))


class _Undecorated(ast.NodeTransformer):
    """`@rule def f(): ...` as `def f(): ...` and `f = rule(f)`: mutmut leaves decorated functions alone."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        self.generic_visit(node)
        names = {ast.unparse(each) for each in node.decorator_list}
        if not names or names & {"staticmethod", "classmethod", "overload"} or any("setter" in name for name in names):
            return node
        made: ast.expr = ast.Name(node.name, ast.Load())
        for decorator in reversed(node.decorator_list):
            made = ast.Call(decorator, [made], [])
        node.decorator_list = []
        return [node, ast.Assign([ast.Name(node.name, ast.Store())], made)]


def shown(verdicts: Verdicts) -> str:
    """The difference that each mutant makes which no test saw, and the reason why none can, if it is known."""
    reasons, texts = known_reasons(), list[str]()
    for name, verdict in verdicts.of.items():
        if verdict not in SEEN:
            lines = _mutmut(verdicts.group, "show", name, read=True).splitlines()
            changed = [line.strip() for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---")]
            place = _place_of(name)
            lengths = len({STRICT.sub("", line[1:]) for line in changed}) == 1
            known = "both have one length" if lengths else reasons.get((place, *map(_unindented, changed)))
            reason = known or f"{verdict}; no reason is known"
            texts.append("\n".join([f"{place}: {reason}", *changed]))
    return "\n\n".join(sorted(texts))


def known_reasons() -> dict[tuple[str, ...], str]:
    """What `SURVIVORS` says: (place, changed lines) -> why no test can see the change."""
    reasons: dict[tuple[str, ...], str] = {}
    for block in SURVIVORS.read_text().split("\n\n"):
        (head, *changed) = [line.strip() for line in block.splitlines() if not line.startswith("#")] or [""]
        place, _, reason = head.partition(": ")
        reasons[(place, *map(_unindented, changed))] = reason
    return reasons


def _unindented(line: str) -> str:
    return f"{line[:1]} {line[1:].strip()}"


def _place_of(mutant: str) -> str:
    """`repcompile.plan.xǁ_Wayǁrank__mutmut_3` as plan._Way.rank."""
    module, _, name = mutant.partition("__mutmut_")[0].removeprefix("repcompile.").rpartition(".")
    return f"{module}.{name.removeprefix('x').removeprefix('_').removeprefix('ǁ').replace('ǁ', '.')}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="group", help=f"of {', '.join(GROUPS)}")
    parser.add_argument("--ends", default="0123456789", help="last digits of the mutants' numbers: 37 is a fifth")
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args(arguments)
    for name in asked.names or GROUPS:
        verdicts = tried(name, asked.ends, asked.workers)
        text = f"{verdicts}\n\n{shown(verdicts)}\n"
        print(text, flush=True)
        _folder(name).with_suffix(".txt").write_text(text)


if __name__ == "__main__":
    main()
