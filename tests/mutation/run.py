"""Mutation testing: `python -m tests.mutation.run plan emit --ends 37`, or without names, of every file in `TARGETS`.

mutmut changes one thing at a time in a copy of the repository, and runs the tests that reach it. How many mutants the
tests see, and which ones they do not, is printed and written to build/mutation.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BUILD = Path("build", "mutation")
COPIED = ("repcompile", "fastvit_zoo", "tests", "docs", "README.md", "CHANGELOG.md", "Makefile", "pyproject.toml")
RULES = ("tests/test_operators.py", "tests/test_rules.py", "tests/blocks")
TARGETS: Mapping[str, tuple[str, ...]] = {  # file of repcompile -> the tests that are there for it
    "affine": ("tests/test_affine.py", "tests/test_impulses.py", "tests/test_emit.py", "tests/test_fold.py"),
    "facts": ("tests/test_facts.py", "tests/test_regions.py", "tests/test_sizes_as_arguments.py", "tests/blocks"),
    "plan": ("tests/test_plan.py",),
    "emit": ("tests/test_emit.py", "tests/test_affine.py", "tests/test_modules.py", "tests/blocks/test_positions.py"),
    "rewrite": ("tests/test_rewrite.py", "tests/test_compiler.py", "tests/test_hostile.py", "tests/test_validation.py"),
    **{
        f"rules/{name}": RULES
        for name in ("channels", "conv", "layout", "linear", "norm", "pad", "pointwise", "pool", "product", "shape")
    },
    "rules/emitted": ("tests/test_operators.py", "tests/test_rules.py", "tests/test_compiler.py"),
    "rules/rewriting": ("tests/test_rewrites.py",),
    "rules/ruleset": ("tests/test_rules.py", "tests/test_operators.py"),
    "rules/wildcards": ("tests/test_rewrites.py",),
}
SETTINGS = """
[tool.mutmut]
source_paths = ["repcompile"]
only_mutate = ["repcompile/{name}.py"]
also_copy = ["fastvit_zoo", "docs", "README.md", "CHANGELOG.md", "Makefile"]
pytest_add_cli_args = ["-p", "no:xdist", "-p", "no:cacheprovider", "-W", "ignore"]
pytest_add_cli_args_test_selection = {tests}
process_isolation = "forkserver"
track_dependencies = false
use_git_change_detection = false
"""
SEEN = ("killed", "timeout")  # mutmut's words where a test noticed
UNTRIED = "not checked"


@dataclass(frozen=True, slots=True)
class Verdicts:
    """Of the mutants of a file that were tried: name -> mutmut's word for what became of it."""

    file: str
    of: Mapping[str, str]

    def __str__(self) -> str:
        killed = sum(verdict in SEEN for verdict in self.of.values())
        return f"{self.file}: {killed} of {len(self.of)} killed ({killed / max(len(self.of), 1):.1%})"


def tried(name: str, ends: str, workers: int) -> Verdicts:
    """Try the mutants of one file whose numbers end in one of the digits."""
    _prepare(_folder(name), name)
    chosen = [f"*__mutmut_*{digit}" for digit in ends] if set(ends) != set("0123456789") else []
    _mutmut(name, "run", "--max-children", str(workers), *chosen)
    lines = _mutmut(name, "results", "--all", "true", read=True).splitlines()
    verdicts = dict(line.strip().split(": ", 1) for line in lines if ": " in line)
    return Verdicts(name, {mutant: verdict for mutant, verdict in verdicts.items() if verdict != UNTRIED})


def _mutmut(name: str, *arguments: str, read: bool = False) -> str:
    """Run mutmut on the copy for a file; what it prints, if that is to be read."""
    program = Path(sys.executable).absolute().with_name("mutmut")
    settings = {**os.environ, "CI": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    output = subprocess.PIPE if read else None
    done = subprocess.run([program, *arguments], cwd=_folder(name), env=settings, stdout=output, text=True, check=read)
    return done.stdout or ""


def _folder(name: str) -> Path:
    return BUILD / name.replace("/", "-")


def _prepare(folder: Path, name: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for part in COPIED:
        source = Path(part)
        (shutil.copytree if source.is_dir() else shutil.copy2)(source, folder / part)
    target = folder / "repcompile" / f"{name}.py"
    target.write_text(ast.unparse(ast.fix_missing_locations(_Undecorated().visit(ast.parse(target.read_text())))))
    with (folder / "pyproject.toml").open("a") as file:
        file.write(SETTINGS.format(name=name, tests=json.dumps(TARGETS[name])))


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
    """The difference that each mutant makes which no test saw."""
    texts = list[str]()
    for name, verdict in verdicts.of.items():
        if verdict not in SEEN:
            lines = _mutmut(verdicts.file, "show", name, read=True).splitlines()
            changed = [line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---")]
            texts.append("\n".join([f"{verdict}: {name}", *changed]))
    return "\n\n".join(texts)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="file", help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--ends", default="0123456789", help="last digits of the mutants' numbers: 37 is a fifth")
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args(arguments)
    for name in asked.names or TARGETS:
        verdicts = tried(name, asked.ends, asked.workers)
        text = f"{verdicts}\n\n{shown(verdicts)}\n"
        print(text, flush=True)
        _folder(name).with_suffix(".txt").write_text(text)


if __name__ == "__main__":
    main()
