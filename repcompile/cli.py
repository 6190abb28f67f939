"""The command line.  Models, images and class names come from `package.module:function`, a user's own or anybody's."""

from __future__ import annotations

import argparse
import importlib
import inspect
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from torch import nn

from repcompile import demo
from repcompile.compiler import explain
from repcompile.errors import ModelError, RepcompileError
from repcompile.rules import DEFAULT, load_rules
from repcompile.testing import randomize

ZOO = "fastvit_zoo:create_model"
IMAGE = "fastvit_zoo.data:preprocessed_photograph"
NAMES = "fastvit_zoo.data:class_names"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 if it succeeded, 1 with one sentence on stderr if it could not."""
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except RepcompileError as error:
        Console(stderr=True).print(f"repcompile: {error}", style="red", highlight=False, markup=False)
        return 1
    except _factory_errors(options) as error:
        Console(stderr=True).print(f"{options.factory}: {error}", style="red", highlight=False, markup=False)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="repcompile", description="Structural reparameterization for PyTorch models.")
    commands = parser.add_subparsers(required=True, metavar="command")
    show = commands.add_parser("demo", help="fuse a model and compare the two forms on a real photograph")
    show.add_argument("--model", default="fastvit_t8", help="what the factory is called with (default: %(default)s)")
    show.add_argument("--checkpoint", help="file of weights; without it they are random, from a fixed seed")
    show.add_argument("--factory", default=ZOO, help="package.module:function (default: %(default)s)")
    show.add_argument("--image", default=IMAGE, help="function that returns the input (default: %(default)s)")
    show.add_argument("--names", default=NAMES, help="function that returns the class names (default: %(default)s)")
    show.set_defaults(command=_demo)
    why = commands.add_parser("explain", help="say what would be fused in a model, what not, and why not")
    why.add_argument("factory", help="package.module:function that returns a model, e.g. torchvision.models:resnet18")
    why.add_argument("arguments", nargs="*", help="arguments of the factory: value, or name=value")
    why.add_argument("--ranges", action="store_true", help="how far the channels' weights are apart, for quantizing")
    why.set_defaults(command=_explain)
    for command in (show, why):
        command.add_argument(
            "--rules", action="append", default=[], metavar="NAME", help="rules of an installed package"
        )
        command.add_argument("--only", action="append", metavar="GLOB", help="compile only modules with such paths")
        command.add_argument(
            "--skip", action="append", metavar="GLOB", help="leave modules with such paths as they are"
        )
    return parser


def _demo(options: argparse.Namespace) -> None:
    given = {} if options.checkpoint is None else {"checkpoint": options.checkpoint}
    model = _made(options.factory, (options.model,), given)
    model = model.eval() if options.checkpoint else randomize(model).eval()
    weights = f"weights of {options.checkpoint}" if options.checkpoint else "random weights and statistics"
    result = demo.run(model, _function(options.image)(), **_choices(options))
    names = _function(options.names) if options.checkpoint else None
    demo.show(Console(), f"{options.model}, {weights}", result, names)


def _explain(options: argparse.Namespace) -> None:
    positional = [_value(a) for a in options.arguments if "=" not in a]
    named = {name: _value(text) for name, text in (a.split("=", 1) for a in options.arguments if "=" in a)}
    report = explain(_made(options.factory, positional, named).eval(), **_choices(options))
    Console().print(report)
    if options.ranges:
        Console().print(report.ranges)


def _choices(options: argparse.Namespace) -> dict[str, Any]:
    """The rules that were named on top of the usual ones, and the modules that were chosen."""
    rules = DEFAULT
    for name in options.rules:
        rules += load_rules(name)
    return {"rules": rules, "only": options.only, "skip": options.skip}


def _made(factory: str, positional: Sequence[Any], named: Mapping[str, Any]) -> nn.Module:
    """The model that `factory` returns.  Raises ModelError if it takes other arguments, or returns something else."""
    function = _function(factory)
    try:
        inspect.signature(function).bind(*positional, **named)
    except TypeError as error:
        raise ModelError(f"{factory} cannot be called like this: {error}") from error
    try:
        model = function(*positional, **named)
    except TypeError as error:  # it hands them on to a constructor that refuses them
        raise ModelError(f"{factory} failed: {error}") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{factory} returned {type(model).__name__}, not a torch.nn.Module")
    return model


def _function(name: str) -> Any:
    """What `package.module:function` names.  Raises ModelError if there is no such thing."""
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise ModelError(f"{name!r} names no function: write package.module:function")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ModelError(f"{name!r} cannot be imported: {error}") from error


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _factory_errors(options: argparse.Namespace) -> tuple[type[Exception], ...]:
    """The errors that the factory's package declares: they are sentences for the user, as ours are."""
    package = sys.modules.get(options.factory.partition(":")[0].partition(".")[0])
    found = [getattr(package, name) for name in getattr(package, "__all__", ())]
    return tuple(kind for kind in found if isinstance(kind, type) and issubclass(kind, Exception))


if __name__ == "__main__":
    sys.exit(main())
