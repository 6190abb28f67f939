"""One statement of a forward that stays Python, while the statements around it are traced.

Given: a forward, and the line at which tracing it failed.  Result: the statement there as a function of the names that
it reads, which returns those that it assigns; and the forward that calls such a function in its place.
"""

from __future__ import annotations

import ast
import copy
import dis
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from types import CellType, CodeType, FunctionType, SimpleNamespace
from typing import Any

from torch import nn

from repcompile.errors import ModelError
from repcompile.sources import Tree, source_of

RECORDERS = "__statements__"  # the name around the forward that holds what is called in place of the statements
FUTURE = 0x1FF0000  # the bits of a code's flags that say under which `from __future__` it was compiled
REMEMBERED = 512  # functions

Names = frozenset[str]
HEADS: dict[type[ast.stmt], str] = {ast.If: "test", ast.While: "test", ast.For: "iter"}
QUESTIONS = ("shape", "ndim")
RESULT = "return"  # what a `return` assigns: no name
SIMPLE = (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Assert, ast.Raise, ast.Pass, ast.Expr)
FILLING = ("CACHE", "NOP", "PRECALL", "PUSH_NULL")
METHODS = {"LOAD_METHOD": "LOAD_ATTR", "CALL_METHOD": "CALL"}
UNKNOWN = (
    *(ast.Lambda, ast.NamedExpr, ast.Yield, ast.YieldFrom, ast.Await),
    *(ast.GeneratorExp, ast.ListComp, ast.SetComp, ast.DictComp),  # names of their own
)


@dataclass(frozen=True, slots=True)
class Statement:
    """forward: the function, with its decorators, by whose name it is pickled.  number: of the statement in its tree.

    reads, writes: local names, in order; "x.shape" where that is all it reads of x; a `return` writes `RESULT`.
    """

    forward: Any  # a FunctionType, which would be a method in a class
    number: int
    reads: tuple[str, ...]
    writes: tuple[str, ...]

    @property
    def function(self) -> FunctionType:
        return _undecorated(self.forward)

    @property
    def node(self) -> ast.stmt:
        return _statements(_tree(self.function))[self.number]


class KeptStatement(nn.Module):
    """Runs a statement, and returns a tuple of what it assigns.

    given: names of the arguments, in order.  fixed: what the other names that it reads are.
    """

    def __init__(self, statement: Statement, given: Sequence[str], fixed: Mapping[str, Any]) -> None:
        super().__init__()
        self.statement, self.given, self.fixed = statement, tuple(given), dict(fixed)
        self.run = _function_of(statement)
        self.training = False

    def forward(self, *values: Any) -> Any:
        return self.run(**dict(zip(self.given, values, strict=True)), **self.fixed)

    def same(self, other: KeptStatement) -> bool:
        """Whether both do the same."""
        alike = (self.statement, self.given) == (other.statement, other.given)
        return alike and _alike(self.fixed, other.fixed)

    def extra_repr(self) -> str:
        return f"reads=({', '.join(self.statement.reads)}), assigns=({', '.join(self.statement.writes)})"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "run"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.run = _function_of(self.statement)


def _alike(value: Any, other: Any) -> bool:
    """Whether nobody could tell one fixed value from the other; of a method, the record around it tells the rest."""
    if type(value) is not type(other):
        return False
    if isinstance(value, SimpleNamespace):
        return _alike(vars(value), vars(other))
    if isinstance(value, dict):
        return value.keys() == other.keys() and all(_alike(value[name], other[name]) for name in value)
    if isinstance(value, tuple | frozenset):
        return len(value) == len(other) and all(map(_alike, value, other))
    return value.func is other.func if isinstance(value, partial) else bool(value == other)


def plain_forward(forward: Any) -> FunctionType | None:
    """The function of a bound method, inside its decorators, if its source is known to be what runs."""
    outer = getattr(forward, "__func__", None)
    function = _undecorated(outer) if isinstance(outer, FunctionType) else None
    return function if function is not None and _is_known(function.__code__, function) else None


def _undecorated(function: FunctionType) -> FunctionType:
    while _cell_of_wrapped(function) is not None:
        function = vars(function)["__wrapped__"]
    return function


def redecorated(outer: FunctionType, old: FunctionType, new: FunctionType) -> FunctionType:
    """What the decorators around `old`, `outer` being the outermost, would have made of `new`."""
    if outer is old:
        return new
    inner = redecorated(vars(outer)["__wrapped__"], old, new)
    cells, held = outer.__closure__ or (), _cell_of_wrapped(outer)
    closure = tuple(CellType(inner) if cell is held else cell for cell in cells)
    made = FunctionType(outer.__code__, outer.__globals__, outer.__name__, outer.__defaults__, closure)
    made.__kwdefaults__ = outer.__kwdefaults__
    vars(made).update(vars(outer), __wrapped__=inner)
    return made


def _cell_of_wrapped(function: FunctionType) -> CellType | None:
    """Where a function that `functools.wraps` made holds what it is around, None if it does not or is none."""
    inner = vars(function).get("__wrapped__")
    cells = [cell for cell in function.__closure__ or () if inner is not None and _content(cell) is inner]
    return cells[0] if len(cells) == 1 and isinstance(inner, FunctionType) else None


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing was assigned to it yet
        return None


def statement_at(forward: FunctionType, line: int) -> Statement | None:
    """The innermost statement that stands at `line` of the file, None if it cannot run on its own."""
    function = _undecorated(forward)
    numbered = [(number, node) for number, node in enumerate(_statements(_tree(function))) if _covers(node, line)]
    innermost = [(number, node) for number, node in numbered if not any(_covers(n, line) for n in _inner(node))]
    if len(innermost) != 1 or not all(type(node) in HEADS for _, node in numbered if node is not innermost[0][1]):
        return None  # several at one line; or others around it that would have to be there at run time as well
    ((number, node),) = innermost
    if not _may_stand_alone(node):
        return None
    local, (read, assigned) = _local(function.__code__), _flow([node], frozenset())
    stored = {name.id for name in _names(node, ast.Store)}
    written = stored & (read | _read_elsewhere(_tree(function), node))
    unsure = _without(frozenset(written), assigned)
    writes = (RESULT,) if isinstance(node, ast.Return) else tuple(sorted(written))
    names = local & (read | unsure)
    reads = sorted(part for name in names for part in _asked(node, name) or (name,))
    return Statement(forward, number, tuple(reads), writes) if stored <= local else None


def with_statements(
    function: FunctionType, statements: Sequence[Statement], recorders: Sequence[Callable[..., Any]]
) -> FunctionType:
    """The forward with calls in the place of statements: of the recorders, with the names that each one reads."""
    tree = copy.deepcopy(_tree(function))
    nodes = _statements(tree)
    calls = {nodes[each.number]: _call(each, place, nodes[each.number]) for place, each in enumerate(statements)}
    _Exchange(calls).visit(tree)
    return _compiled(tree, function, tuple(recorders))


class _Exchange(ast.NodeTransformer):
    def __init__(self, calls: Mapping[ast.stmt, ast.stmt]) -> None:
        self._calls = calls

    def visit(self, node: ast.AST) -> Any:
        return self._calls[node] if node in self._calls else self.generic_visit(node)  # type: ignore[index]


def _call(statement: Statement, place: int, like: ast.stmt) -> ast.stmt:
    """`(a, b) = __statements__[place](x, y)`"""
    recorder = ast.Subscript(ast.Name(RECORDERS, ast.Load()), ast.Constant(place), ast.Load())
    call = ast.Call(recorder, [ast.parse(read, mode="eval").body for read in statement.reads], [])
    names: list[ast.expr] = [ast.Name(name, ast.Store()) for name in statement.writes]
    made: ast.stmt = ast.Assign([ast.Tuple(names, ast.Store())], call) if names else ast.Expr(call)
    if statement.writes == (RESULT,):
        made = ast.Return(ast.Subscript(call, ast.Constant(0), ast.Load()))
    for node in ast.walk(made):
        ast.copy_location(node, like)
    return made


@lru_cache(REMEMBERED)
def _function_of(statement: Statement) -> FunctionType:
    """The statement as a function of the names that it reads."""
    node: Any = copy.deepcopy(statement.node)
    body, names = [node], list[ast.expr](ast.Name(name, ast.Load()) for name in statement.writes)
    if statement.writes == (RESULT,):
        body, names = [], [node.value]
    result = ast.Return(ast.Tuple(names, ast.Load()))
    tree = _defined("statement", [parameter(read) for read in statement.reads], [*body, result])
    _Asked(statement.reads).visit(tree)
    made = _compiled(ast.copy_location(tree, node), statement.function)
    made.__defaults__, made.__kwdefaults__ = None, None
    return made


def parameter(read: str) -> str:
    """The name of the parameter for something that a statement reads."""
    return read.replace(".", "__")


class _Asked(ast.NodeTransformer):
    def __init__(self, reads: Sequence[str]) -> None:
        self._reads = reads

    def visit_Attribute(self, node: ast.Attribute) -> Any:
        read = ast.unparse(node)
        known = read in self._reads
        return ast.copy_location(ast.Name(parameter(read), ast.Load()), node) if known else self.generic_visit(node)


# -- trees and code ----------------------------------------------------------------------------------------------------


@lru_cache(REMEMBERED)
def _tree(function: FunctionType) -> Tree:
    """The function's tree, without decorators, its lines counted as in the file."""
    source = source_of(function)
    if source is None:
        raise ModelError(f"the source of {function.__qualname__} is not here any more")
    tree = copy.deepcopy(source.tree)
    first = min([tree.lineno, *(node.lineno for node in tree.decorator_list)])
    ast.increment_lineno(tree, function.__code__.co_firstlineno - first)
    tree.decorator_list = []
    return tree


def _compiled(tree: Tree, like: FunctionType, recorders: tuple[Any, ...] | None = None) -> FunctionType:
    """A function with the surroundings of another one.  recorders: what `RECORDERS` means in it."""
    module = ast.fix_missing_locations(ast.Module([_defined("around", (RECORDERS,), [tree])], []))
    flags, name = like.__code__.co_flags & FUTURE, like.__code__.co_filename
    around = _inner_code(compile(module, name, "exec", flags=flags, dont_inherit=True), "around")
    closure = None if recorders is None else (CellType(recorders),)
    made = FunctionType(_inner_code(around, tree.name), like.__globals__, tree.name, like.__defaults__, closure)
    made.__kwdefaults__ = like.__kwdefaults__
    return made


def _defined(name: str, parameters: Sequence[str], body: list[ast.stmt]) -> ast.FunctionDef:
    """A definition; parsed, because its node has other fields in other versions of Python."""
    (tree,) = ast.parse(f"def {name}({', '.join(parameters)}): pass").body
    assert isinstance(tree, ast.FunctionDef)
    tree.body = body
    return tree


def _inner_code(code: CodeType, name: str) -> CodeType:
    return next(part for part in _nested(code) if part.co_name == name)


@lru_cache(REMEMBERED)
def _is_known(code: CodeType, function: FunctionType) -> bool:
    """Whether the source that is found for a function, on its own, is what it was compiled from."""
    source = source_of(function)
    if source is None or code.co_freevars or not isinstance(source.tree, ast.FunctionDef):
        return False
    return _same(_compiled(_tree(function), function).__code__, code)


def _same(code: CodeType, other: CodeType) -> bool:
    """Whether both do the same; `a.b()` is compiled in two ways, by whether `a` is imported in the file around it."""
    inner, others = _nested(code), _nested(other)
    alike = code.co_varnames == other.co_varnames and _instructions(code) == _instructions(other)
    return alike and len(inner) == len(others) and all(map(_same, inner, others))


def _nested(code: CodeType) -> list[CodeType]:
    return [value for value in code.co_consts if isinstance(value, CodeType)]


def _instructions(code: CodeType) -> list[tuple[str, Any]]:
    """(name, operand) of each instruction; of a jump, the number of the instruction that it leads to."""
    kept = [each for each in dis.get_instructions(code) if each.opname not in FILLING]
    offsets = [each.offset for each in kept]

    def operand(each: dis.Instruction) -> Any:
        if each.opcode in (*dis.hasjrel, *dis.hasjabs):
            return bisect_left(offsets, each.argval)
        return CodeType if isinstance(each.argval, CodeType) else (type(each.argval), each.argval)

    return [(METHODS.get(each.opname, each.opname), operand(each)) for each in kept]


def _statements(tree: Tree) -> list[ast.stmt]:
    """All statements inside, in an order that copies of the tree have too."""
    return [node for node in ast.walk(tree) if isinstance(node, ast.stmt) and node is not tree]


def _inner(node: ast.stmt) -> list[ast.stmt]:
    return [part for part in ast.walk(node) if isinstance(part, ast.stmt) and part is not node]


def _covers(node: ast.stmt, line: int) -> bool:
    return node.lineno <= line <= (node.end_lineno or node.lineno)


def _local(code: CodeType) -> Names:
    return frozenset((*code.co_varnames, *code.co_cellvars))


# -- what a statement reads and assigns --------------------------------------------------------------------------------


def _may_stand_alone(node: ast.stmt) -> bool:
    """Whether nothing in it jumps out, or makes, or changes, anything but local names."""
    if any(isinstance(part, UNKNOWN) for part in ast.walk(node)):
        return False
    kinds = (*SIMPLE, *HEADS)
    known = all(type(part) in kinds for part in _inner(node))
    known = known and (type(node) in kinds or (isinstance(node, ast.Return) and node.value is not None))
    return known and all(_targets_are_names(node))


def _targets_are_names(node: ast.stmt) -> Iterator[bool]:
    for part in ast.walk(node):
        if isinstance(part, ast.expr) and not isinstance(part, ast.Name | ast.Tuple | ast.List | ast.Starred):
            yield isinstance(getattr(part, "ctx", ast.Load()), ast.Load)


def _names(node: ast.AST, context: type[ast.expr_context]) -> list[ast.Name]:
    return [part for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, context)]


def _read_elsewhere(tree: ast.AST, node: ast.AST) -> Names:
    """Names that the rest of a function reads; an augmented assignment reads too."""
    if tree is node:
        return frozenset()
    own = {part.id} if isinstance(part := getattr(tree, "target", None), ast.Name) else set[str]()
    own |= {tree.id} if isinstance(tree, ast.Name) and not isinstance(tree.ctx, ast.Store) else set()
    return frozenset(own).union(*(_read_elsewhere(child, node) for child in ast.iter_child_nodes(tree)))


def _asked(node: ast.stmt, name: str) -> set[str]:
    """`{"x.shape"}` if that is all that a statement does with x: then it need not get the tensor."""
    named = [part for part in ast.walk(node) if isinstance(part, ast.Name) and part.id == name]
    owners = [part for part in ast.walk(node) if isinstance(part, ast.Attribute) and part.value in named]
    only = len(owners) == len(named) and all(part.attr in QUESTIONS for part in owners)
    return {f"{name}.{part.attr}" for part in owners} if only else set()


def _flow(body: Iterable[ast.stmt], assigned: Names | None) -> tuple[Names, Names | None]:
    """(names that may be read before they are assigned, names that surely are assigned at the end)

    None stands for all names: behind a `raise` there is nobody who could miss one.
    """
    read: Names = frozenset()
    for node in body:
        head = getattr(node, HEADS.get(type(node), ""), node)
        loads = frozenset(name.id for name in _names(head, ast.Load))
        if isinstance(node, ast.AugAssign):
            loads |= frozenset(name.id for name in _names(node.target, ast.Store))
        read |= _without(loads, assigned)
        if type(node) in HEADS:
            more, assigned = _branches(node, assigned)
            read |= more
        elif isinstance(node, ast.Raise):
            assigned = None
        elif not isinstance(node, ast.AnnAssign) or node.value is not None:
            assigned = _with(assigned, node)
    return read, assigned


def _branches(node: Any, assigned: Names | None) -> tuple[Names, Names | None]:
    """The same for the inside of an `if` or a loop."""
    inside = _with(assigned, node.target) if isinstance(node, ast.For) else assigned
    first, one = _flow(node.body, inside)
    second, other = _flow(node.orelse, assigned)
    if not isinstance(node, ast.If):
        return first | second, assigned
    if one is None:
        return first | second, other
    return first | second, one if other is None else one & other


def _with(assigned: Names | None, node: ast.AST) -> Names | None:
    return None if assigned is None else assigned | {name.id for name in _names(node, ast.Store)}


def _without(names: Names, assigned: Names | None) -> Names:
    return frozenset() if assigned is None else names - assigned
