"""Sums in the order in which they merge, and norms moved to what they can be folded into.

Given: a canonical graph, which this stage takes over, and its facts.  Result: an equal graph, where

- what is stacked and added along the stack is a sum;
- the terms of a sum that read one value stand next to each other: `(f(x) + a(x)) + b(x)` is `(a(x) + b(x)) + f(x)`;
- a batch norm, or a gain and a shift, behind a sum or a concatenation of convolutions stands behind each of them;
- one that several operators read, and each can take in, is there once for each of them (`TWIN`).
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from repcompile.affine import Affine, Map, Uniform
from repcompile.capture import Captured
from repcompile.errors import Inexact
from repcompile.facts import Facts
from repcompile.inquiries import question_of
from repcompile.modules import of_rank
from repcompile.paths import Fact, aligned
from repcompile.spelling import ADDITIONS, MULTIPLICATIONS, SUBTRACTIONS, target_of

MOST_TERMS = 64
PARTICULAR = (nn.BatchNorm2d, nn.BatchNorm3d)  # take one number of axes
FEW = 3  # terms, which two operators add: as many as stack them and add along the stack
TWIN = "twin"  # in a node's `meta`: the node that it does the same as, so that those that stay can be one again
CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)
STATISTICS = ("running_mean", "running_var", "weight", "bias")
BATCH_NORM = (None, None, None, None, None, False, 0.1, 1e-5)  # what the arguments of `F.batch_norm` are if left out


@dataclass(frozen=True, slots=True)
class Term:
    """factor * value"""

    value: fx.Node
    factor: float = 1.0


def regrouped(captured: Captured, facts: Facts) -> Captured | None:
    """The graph with sums regrouped and norms distributed, None if there is nothing to do."""
    editor = _Editor(captured, facts)
    for node in list(captured.graph.nodes):
        editor.visit(node)
    if not editor.changed:
        return None
    captured.graph.eliminate_dead_code(is_impure_node=lambda node: node not in editor.replaced)
    return replace(captured, constants={**captured.constants, **editor.constants})


class _Editor:
    def __init__(self, captured: Captured, facts: Facts) -> None:
        self._captured = captured
        self._facts = facts
        self._floating = set(facts.floating)  # integers overflow: their sums stay as they are
        self._segments = captured.segments(facts.numbers)
        self._asked = captured.asked_by_python()
        self.changed = False
        self.replaced: set[fx.Node] = set()
        self.constants: dict[str, Tensor] = {}

    def visit(self, node: fx.Node) -> None:
        """Rewrite what ends at `node`."""
        if _is_sum_of_stack(node) and not self._captured.stays(node):
            if node not in self._asked:  # a stack is contiguous, whatever its values are
                self._add_up(node)
        elif self._is_norm(node):
            self._distribute(node)
        elif self._is_sum(node) and not (len(node.users) == 1 and self._is_sum(next(iter(node.users)))):
            self._regroup(node)
        elif len(node.users) > 1 and self._is_absorbed(node):
            self._share_out(node)

    # -- pointwise maps that several read ------------------------------------------------------------------------------

    def _is_absorbed(self, node: fx.Node) -> bool:
        """Whether all readers of a number for each channel can take it in at no cost, and what it reads cannot."""
        values = [operand for operand in node.all_input_nodes if self._is_value(operand)]
        if len(values) != 1 or node not in self._facts.rules or self._near(node, values[0]) is None:
            return False
        if values[0] not in self._floating:  # what may be integers, no operator reads for another one
            return False
        return not self._absorbs(values[0]) and self._is_taken_in(node, node, values[0])

    def _is_taken_in(self, reader: fx.Node, node: fx.Node, source: fx.Node, depth: int = 4) -> bool:
        """Whether a map with weights follows on every way from `reader`, as heavy with `node` in it as without."""
        users = [user for user in reader.users if question_of(user) is None]
        for user in users:
            own, whole = self._fact(user, node), self._fact(user, source)
            if own is None or whole is None or not depth:
                return False
            moves = user in self._facts.steps or (user in self._facts.rules and self._facts.rules[user].copies)
            if moves or not isinstance(own.map, Affine) or own.map.is_diagonal:
                if not self._is_taken_in(user, node, source, depth - 1):
                    return False
            elif not isinstance(whole.map, Affine) or whole.map.has_border or whole.map.weights > own.map.weights:
                return False
        return bool(users)

    def _share_out(self, node: fx.Node) -> None:
        node.meta[TWIN] = node
        for user in [user for user in node.users if question_of(user) is None][1:]:
            with node.graph.inserting_after(node):
                twin = node.graph.node_copy(node)
            self._segments[twin] = self._segments[node]
            user.replace_input_with(node, twin)
        self.changed = True

    # -- sums --------------------------------------------------------------------------------------------------------

    def _is_sum(self, node: fx.Node) -> bool:
        """Whether it adds or subtracts two values that depend on the input."""
        if target_of(node) not in (*ADDITIONS, *SUBTRACTIONS) or len(node.args) != 2 or set(node.kwargs) - {"alpha"}:
            return False
        if self._captured.stays(node):
            return False
        values = [arg for arg in node.args if isinstance(arg, fx.Node) and self._is_value(arg)]
        return len(values) == 2 and isinstance(node.kwargs.get("alpha", 1), int | float)

    def _is_value(self, node: fx.Node) -> bool:
        known = node in self._facts.shapes and node not in self._facts.sizes
        return known and node not in self._facts.constants and node.op != "get_attr"

    def _terms(self, node: fx.Node, factor: float = 1.0) -> list[Term]:
        """The terms of a sum, down to what is no sum or has other readers."""
        terms: list[Term] = []
        stack = [Term(node, factor)]
        while stack:
            term = stack.pop()
            flat = self._is_flat(term.value) and self._may_move(term.value, node)
            if self._is_sum(term.value) and (term.value is node or flat):
                sign = -1.0 if term.value.target in SUBTRACTIONS else 1.0
                left, right = term.value.args
                assert isinstance(left, fx.Node)
                assert isinstance(right, fx.Node)
                alpha: Any = term.value.kwargs.get("alpha", 1)
                stack += [Term(right, term.factor * sign * float(alpha)), Term(left, term.factor)]
            elif flat and self._scaled(term.value) is not None:
                inner, scale = self._scaled(term.value) or (term.value, 1.0)
                stack.append(Term(inner, term.factor * scale))
            else:
                terms.append(term)
        return terms

    def _may_move(self, node: fx.Node, reader: fx.Node) -> bool:
        """Whether nobody may write between the two, so that `reader` may read what `node` reads."""
        return self._segments[node] == self._segments[reader]

    def _is_flat(self, node: fx.Node) -> bool:
        """Whether a sum may be part of another one: only that reads it, and it is rounded and does not overflow."""
        return _is_read_once(node) and node in self._floating

    def _scaled(self, node: fx.Node) -> tuple[fx.Node, float] | None:
        """(sum, number) if `node` is a number times a sum."""
        if target_of(node) not in MULTIPLICATIONS or len(node.args) != 2 or node.kwargs:
            return None
        pairs = [(a, b) for a, b in (node.args, node.args[::-1]) if isinstance(a, fx.Node) and type(b) in (int, float)]
        return next(((a, float(b)) for a, b in pairs if self._is_sum(a) and len(a.users) == 1), None)  # type: ignore[arg-type]

    def _regroup(self, root: fx.Node) -> None:
        terms = self._terms(root)
        if not 2 < len(terms) <= MOST_TERMS:
            return
        groups = self._groups(terms)
        large = [{term.value for term in group} for group in groups if len(group) > 1]
        if not large or len(groups) == 1 or all(self._stands(root, group) for group in large):
            return
        with root.graph.inserting_before(root):
            ordered = sorted(groups, key=len, reverse=True)
            sums = [group[0] if len(group) == 1 else self._summed(group, root) for group in ordered]
            self._replace(root, self._summed(sums, root).value)

    def _stands(self, root: fx.Node, group: set[fx.Node]) -> bool:
        """Whether some part of the sum adds just the terms of `group` already."""
        inner = [node for node in _inside(root, self._is_sum) if node is not root]
        return any({term.value for term in self._terms(node)} == group for node in inner)

    def _groups(self, terms: Sequence[Term]) -> list[list[Term]]:
        """Terms of one source whose maps can be added, as many together as possible; the others alone."""
        left, groups = list(terms), list[list[Term]]()
        while left:
            sources = dict.fromkeys(s for term in left for s in self._sources(term.value) if s in self._floating)
            best = max((self._members(source, left) for source in sources), key=len, default=[])
            if len(best) < 2:
                break
            groups.append(best)
            left = [term for term in left if term not in best]
        return [*groups, *([term] for term in left)]

    def _sources(self, value: fx.Node) -> Iterable[fx.Node]:
        return (value, *(fact.source for fact in self._facts.maps.get(value, ())))

    def _members(self, source: fx.Node, terms: Sequence[Term]) -> list[Term]:
        """The terms that are maps of `source` which can be added to the heaviest one."""
        known = [(term, fact) for term in terms if (fact := self._fact(term.value, source)) is not None]
        weights = {fact: fact.map.weights for _, fact in known if isinstance(fact.map, Affine)}
        if not weights:
            return []
        first = max(weights, key=weights.__getitem__)
        return [term for term, fact in known if fact is first or _addable(first, fact)]

    def _fact(self, value: fx.Node, source: fx.Node) -> Fact | None:
        if value is source:
            return Fact(source, Uniform())
        return next((fact for fact in self._facts.maps.get(value, ()) if fact.source is source), None)

    def _summed(self, terms: Sequence[Term], root: fx.Node) -> Term:
        """The terms added in turn, in front of `root`."""
        first, *rest = sorted(terms, key=lambda term: term.factor != 1.0)
        total = self._times(first, root)
        for term in rest:
            function = operator.sub if term.factor == -1.0 else operator.add
            if abs(term.factor) == 1.0:
                total = self._new(function, (total, term.value), root)
            else:
                total = self._new(torch.add, (total, term.value), root, alpha=term.factor)
        return Term(total)

    def _times(self, term: Term, root: fx.Node) -> fx.Node:
        return term.value if term.factor == 1.0 else self._new(operator.mul, (term.value, term.factor), root)

    def _add_up(self, node: fx.Node) -> None:
        """The values of a stack added one after another, where that takes no more operators; of integers, torch adds
        up larger ones.
        """
        stack: Any = node.args[0]
        values: Sequence[fx.Node] = stack.args[0]
        if not self._floating.issuperset(values) or not self._may_move(stack, node) or not self._is_cheap(node, values):
            return
        with node.graph.inserting_before(node):
            total = self._summed([Term(value) for value in values], node).value
            if node.target in ("mean", torch.mean):
                total = self._new(operator.truediv, (total, len(values)), node)
        self._replace(node, total)

    def _is_cheap(self, node: fx.Node, values: Sequence[fx.Node]) -> bool:
        """Whether adding up takes no more operators than the stack and its sum, once what can merge has merged.

        node: the sum of the stack, which may be part of a sum of several.
        """
        root, before = node, 0
        while len(root.users) == 1 and self._is_sum(next(iter(root.users))):
            root = next(iter(root.users))
        terms: list[Term] = []
        for term in [Term(node)] if root is node else self._terms(root):
            stacked = _is_sum_of_stack(term.value)
            before += 3 if stacked else 1  # the stack, its sum, and the addition of that
            terms += map(Term, term.value.args[0].args[0]) if stacked else [term]  # type: ignore[union-attr]
        return len(values) <= FEW or len(self._groups(terms)) <= before

    # -- norms behind sums and concatenations ------------------------------------------------------------------------

    def _is_norm(self, node: fx.Node) -> bool:
        """A batch norm in eval mode, or a gain, behind a sum or a concatenation that only it reads."""
        operand = next((arg for arg in node.args if isinstance(arg, fx.Node) and self._is_value(arg)), None)
        if operand is None or len(operand.users) != 1 or node.kwargs or node.target is operator.getitem:
            return False
        joins = self._is_sum(operand) or self._is_cat(operand)
        numbers = self._gain_and_shift(node)
        known = isinstance(numbers, _Numbers) or (numbers is not None and self._is_sum(operand))
        return joins and known and self._near(node, operand) is not None

    def _near(self, node: fx.Node, operand: fx.Node) -> Affine | None:
        """What `node` is of its operand, if that is a number for each channel."""
        facts = self._facts.maps.get(node, ())
        x = next((fact.map for fact in facts if fact.source is operand and not fact.path), None)
        return x if isinstance(x, Affine) and x.is_diagonal else None

    def _is_cat(self, node: fx.Node) -> bool:
        plain = node.target in CONCATENATIONS and len(node.args) in (1, 2) and not node.kwargs
        return plain and isinstance(node.args[0], list | tuple) and all(isinstance(a, fx.Node) for a in node.args[0])

    def _gain_and_shift(self, node: fx.Node) -> _Numbers | fx.Node | None:
        """The numbers of a batch norm, or the constant that a product has as a factor."""
        if node.op == "call_module" and issubclass(self._captured.torch_class(node), nn.modules.batchnorm._BatchNorm):
            norm: Any = self._captured.module(node)
            return _Numbers((norm.running_mean, norm.running_var, norm.weight, norm.bias), norm.eps, str(node.target))
        if node.target is F.batch_norm:
            given: Any = (*node.args, *BATCH_NORM[len(node.args) :])
            return _Numbers(given[1:5], given[7], str(node.meta.get("path", "")))
        constants = [arg for arg in node.args if isinstance(arg, fx.Node) and arg in self._facts.constants]
        return constants[0] if target_of(node) in MULTIPLICATIONS and len(node.args) == 2 and constants else None

    def _distribute(self, node: fx.Node) -> None:
        (operand,) = [arg for arg in node.args if isinstance(arg, fx.Node) and self._is_value(arg)]
        values: Any = operand.args[0]
        terms = self._terms(operand) if self._is_sum(operand) else [Term(value) for value in values]
        near, numbers = self._near(node, operand), self._gain_and_shift(node)
        assert near is not None
        assert numbers is not None
        width = near.c_out if self._is_sum(operand) else None
        takers = [self._absorbs(term.value, len(near.axes), width) for term in terms]
        alone = takers.count(False)
        shared = any(fact.source is not operand for fact in self._facts.maps.get(node, ()))
        ahead = len(node.users) == 1 and any(
            f.source is operand for f in self._facts.maps.get(next(iter(node.users)), ())
        )
        if shared or alone > 1 or not any(takers) or (alone and ahead) or not self._may_move(operand, node):
            return
        if isinstance(numbers, _Numbers) and self._is_sum(operand) and not self._of_one_dtype(numbers, terms):
            return  # a batch norm returns what it gets; a product with its gain is promoted
        with node.graph.inserting_before(node):
            if self._is_sum(operand):
                total = self._over_sum(node, terms, takers.index(True), near, numbers)
                if isinstance(numbers, _Numbers) and not issubclass(self._captured.torch_class(node), PARTICULAR):
                    total = self._new(of_rank, (total, len(near.axes) + 2), node)
                self._replace(node, total)
            elif isinstance(numbers, _Numbers):
                self._over_cat(node, operand, near, numbers)

    def _of_one_dtype(self, numbers: _Numbers, terms: Sequence[Term]) -> bool:
        """Whether the weights of the terms, as far as they have some, are of the norm's dtype."""
        own = {self._dtype_of(given) for given in numbers.given if given is not None}
        others = {dtype for term in terms for dtype in self._dtypes_behind(term.value)}
        return len(own) == 1 and own == others

    def _dtypes_behind(self, value: fx.Node, depth: int = 8) -> Iterable[torch.dtype]:
        """Of the nearest weights on the way to `value`."""
        if value.op == "call_module":
            found = {parameter.dtype for parameter in self._captured.module(value).parameters()}
        else:
            found = {self._dtype_of(o) for o in value.all_input_nodes if o in self._facts.constants}
        inputs = [operand for operand in value.all_input_nodes if self._is_value(operand)]
        if found or not inputs or not depth:
            return found
        return self._dtypes_behind(inputs[0], depth - 1)

    def _dtype_of(self, constant: Tensor | fx.Node) -> torch.dtype:
        tensor = constant if isinstance(constant, Tensor) else self._facts.constants.evaluated(constant)
        return torch.get_default_dtype() if tensor is None else tensor.dtype

    def _absorbs(self, value: fx.Node, n_axes: int | None = None, width: int | None = None) -> bool:
        """Whether `value` is a convolution or the like that is read once.

        n_axes: behind the channels of what it is to take in: a Linear along the last axis takes nothing along the
        first.  width: what is broadcast to so many channels is none.
        """
        facts = [fact for fact in self._facts.maps.get(value, ()) if self._is_private(value, fact.source)]
        known = [(fact.path, fact.map) for fact in facts if isinstance(fact.map, Affine)]
        there = None if n_axes is None else self._width(value, n_axes)
        fits = width is None or (there in (None, width) and all(x.c_out == width for _, x in known[:1]))
        weighs = any((n_axes in (None, len(x.axes)) or path) and not x.is_diagonal for path, x in known)
        return _is_read_once(value) and fits and weighs

    def _is_private(self, value: fx.Node, source: fx.Node) -> bool:
        """Whether nobody else reads what lies between the two: who computes that anyway, gains nothing here."""
        inside, stack = {value}, [value]
        while stack:
            for operand in stack.pop().all_input_nodes:
                if operand is not source and operand not in inside and self._is_value(operand):
                    inside.add(operand)
                    stack.append(operand)
        users = (user for node in inside if node is not value for user in node.users)
        return all(user in inside or question_of(user) is not None for user in users)

    def _over_sum(
        self, node: fx.Node, terms: Sequence[Term], first: int, near: Affine, numbers: _Numbers | fx.Node
    ) -> fx.Node:
        """first: which of the terms takes the shift in."""
        gain, shift = self._constants(node, numbers, len(near.axes))
        gains = [gain if t.factor == 1.0 else self._new(operator.mul, (gain, t.factor), node) for t in terms]
        scaled = [
            Term(self._new(operator.mul, pair, node)) for pair in zip((t.value for t in terms), gains, strict=True)
        ]
        if shift is not None:
            scaled[first] = Term(self._new(operator.add, (scaled[first].value, shift), node))
        return self._summed(scaled, node).value

    def _over_cat(self, node: fx.Node, operand: fx.Node, near: Affine, numbers: _Numbers) -> None:
        values: Any = operand.args[0]
        widths = [self._width(value, len(near.axes)) for value in values]
        if None in widths or sum(width or 0 for width in widths) != near.c_out or not self._floating.issuperset(values):
            return
        statistics = self._statistics(node, numbers)
        parts: list[fx.Node] = []
        start = 0
        for value, width in zip(values, widths, strict=True):
            place = slice(start, start + (width or 0))
            own = [None if s is None else self._new(operator.getitem, (s, place), node) for s in statistics]
            parts.append(self._new(F.batch_norm, (value, *own, False, 0.0, numbers.eps), node))
            start += width or 0
        self._replace(node, self._new(operand.target, (parts, *operand.args[1:]), node))

    def _width(self, value: fx.Node, n_axes: int) -> int | None:
        shape = self._facts.shapes.get(value)
        return None if shape is None or len(shape) <= n_axes else shape[-1 - n_axes].known

    def _constants(self, node: fx.Node, numbers: _Numbers | fx.Node, n_axes: int) -> tuple[fx.Node, fx.Node | None]:
        """(gain, shift) as nodes: gamma / sqrt(var + eps), beta - mean gamma / sqrt(var + eps), or the factor alone."""
        if isinstance(numbers, fx.Node):
            return numbers, None
        arguments = (*self._statistics(node, numbers), numbers.eps, n_axes)
        return self._new(gain_of, arguments, node), self._new(shift_of, arguments, node)

    def _statistics(self, node: fx.Node, numbers: _Numbers) -> list[fx.Node | None]:
        """Mean, variance, weight and bias as nodes."""
        found: list[fx.Node | None] = []
        for name, given in zip(STATISTICS, numbers.given, strict=True):
            found.append(given if isinstance(given, fx.Node) else None)
            if isinstance(given, Tensor):
                path = f"{numbers.path}.{name}"
                self.constants[path] = given
                found[-1] = node.graph.create_node("get_attr", path)
                found[-1].meta["path"] = numbers.path
        return found

    # -- nodes -------------------------------------------------------------------------------------------------------

    def _new(self, target: Any, args: tuple[Any, ...], like: fx.Node, **kwargs: Any) -> fx.Node:
        op = "call_method" if isinstance(target, str) else "call_function"
        node = like.graph.create_node(op, target, args, kwargs)
        node.meta["path"] = like.meta.get("path", "")
        self._segments[node] = self._segments[like]
        if not self._floating.isdisjoint(node.all_input_nodes):
            self._floating.add(node)
        return node

    def _replace(self, node: fx.Node, new: fx.Node) -> None:
        node.replace_all_uses_with(new)
        self.replaced.update(_inside(node, lambda _: True, depth=MOST_TERMS))
        self.changed = True


@dataclass(frozen=True, slots=True)
class _Numbers:
    """Of a batch norm.  given: `STATISTICS`, tensors of the module at `path`, or nodes."""

    given: Sequence[Tensor | fx.Node | None]
    eps: float
    path: str


def gain_of(mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, n_axes: int) -> Tensor:
    """gamma / sqrt(var + eps), laid out for `n_axes` axes behind the channels (Ioffe & Szegedy 2015, alg. 2)."""
    root = torch.rsqrt(var + eps)
    return (root if weight is None else root * weight).reshape(-1, *[1] * n_axes)


def shift_of(mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, n_axes: int) -> Tensor:
    """beta - mean gamma / sqrt(var + eps)"""
    centre = -mean.reshape(-1, *[1] * n_axes) * gain_of(mean, var, weight, bias, eps, n_axes)
    return centre if bias is None else centre + bias.reshape(-1, *[1] * n_axes)


def _is_sum_of_stack(node: fx.Node) -> bool:
    """Whether it is `torch.stack(values, dim).sum(dim)`, or the mean."""
    if target_of(node) not in ("sum", "mean", torch.sum, torch.mean):
        return False
    stack, dim = (node.args or (None,))[0], _only_dim(node)
    if not isinstance(stack, fx.Node) or stack.target is not torch.stack or len(stack.users) != 1:
        return False
    along = 0 if len(stack.args) == 1 and not stack.kwargs else _only_dim(stack)
    many = isinstance(stack.args[0], list | tuple) and len(stack.args[0]) > 1
    return many and along is not None and dim in (along, (along,), [along])


def _only_dim(node: fx.Node) -> Any:
    """The axis that a call names, if that is all it says besides its operand."""
    if len(node.args) == 2 and not node.kwargs:
        return node.args[1]
    return node.kwargs["dim"] if len(node.args) == 1 and set(node.kwargs) == {"dim"} else None


def _is_read_once(node: fx.Node) -> bool:
    """By one operator, and there in one place: what is added to itself, or stands beside itself, is there for both."""
    places = list[fx.Node]()
    for user in node.users:
        map_arg((user.args, user.kwargs), lambda operand: places.append(operand) or operand)
    return places.count(node) == 1


def _addable(left: Fact, right: Fact) -> bool:
    try:
        _, maps = aligned([left, right])
        return isinstance(_plus(maps[0], maps[1]), Affine)
    except Inexact:
        return False


def _plus(left: Map, right: Map) -> Map:
    return left + right


def _inside(root: fx.Node, wanted: Any, depth: int = MOST_TERMS) -> list[fx.Node]:
    """`root` and what it is computed from, through nodes that are `wanted`."""
    found, stack = list[fx.Node](), [root]
    while stack and len(found) < depth:
        node = stack.pop()
        if wanted(node) and node not in found:
            found.append(node)
            stack.extend(node.all_input_nodes)
    return found
