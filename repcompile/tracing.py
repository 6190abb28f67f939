"""torch.fx tracing, hardened.

Given: a module.  Result: its graph, the tensors that `get_attr` nodes name, and the modules that could not be traced.

Unlike `torch.fx.symbolic_trace` it patches no class, so that other threads never notice: a copy of the module's
structure (the tensors are shared, and never written to) gets a wrapped `forward` on every instance and proxies in place
of its parameters and buffers. A module whose `forward` cannot run on proxies becomes one node of its parent's graph.
"""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.fx.proxy import TraceError

from repcompile.arguments import Arguments
from repcompile.classes import CONTAINERS, HOOKS, hooked, hooks_of, torch_class, weight_hooks
from repcompile.copies import structure_of
from repcompile.errors import ModelError, Untraceable
from repcompile.factories import MAKING, Factories
from repcompile.handover import contents, hand_over, restore
from repcompile.keeping import Keeping
from repcompile.memo import other_program
from repcompile.memory import ANOTHER, FOR_THE_MOMENT, Remembers, Snapshot, changes, snapshot
from repcompile.outputs import require_plain
from repcompile.proxies import ConstantValue, ResultValue, TensorValue, Value, original
from repcompile.questions import asks_for_identity, asks_for_type
from repcompile.reasons import reason_of
from repcompile.spelling import as_it_is_said, is_derived, name_of
from repcompile.statements import KeptStatement
from repcompile.wrappers import own_call, wrapped

KEPT = "unregistered_"  # begins the names of tensors that no module registers, and of nothing else
SEVERAL = frozenset(  # operators that return tuples or lists
    (
        *("split", "chunk", "unbind", "tensor_split", "hsplit", "vsplit", "dsplit", "topk", "sort", "mode", "kthvalue"),
        *("median", "cummax", "cummin", "std_mean", "var_mean", "svd", "qr", "eigh", "meshgrid", "broadcast_tensors"),
        *("split_with_sizes", "aminmax", "frexp", "unique"),
    )
)
QUESTIONS = ("shape", "ndim", "dtype", "device", "layout", "is_cuda")


@dataclass(frozen=True, slots=True)
class Traced:
    """graph; constants: what `get_attr` targets mean; failures: path of a module that is one node -> why.

    statements: those that are one node, by the path that the node names.
    asked: the inputs of which somebody asked whether they are tensors.
    """

    graph: fx.Graph
    constants: Mapping[str, Tensor]
    failures: Mapping[str, str]
    statements: Mapping[str, KeptStatement]
    asked: frozenset[str]


def trace(
    model: nn.Module, arguments: Arguments, leaves: tuple[type[nn.Module], ...], opaque: Mapping[str, str]
) -> Traced:
    """The graph of a model in eval mode, called as `arguments` says.

    leaves: classes that stay one node.  opaque: paths that must stay one node.
    Raises Remembers if a second call is another program, ModelError if the root cannot be copied, Untraceable if its
    own forward cannot be traced.
    """
    try:
        shell = structure_of(model)
    except Exception as error:  # the user's own __deepcopy__ or attributes
        raise ModelError(f"{type(model).__name__} cannot be copied ({error}), so it cannot be compiled") from error
    if not {id(module) for module in model.modules()}.isdisjoint(map(id, shell.modules())):
        raise ModelError(f"{type(model).__name__} has a module that deepcopy does not copy, so it cannot be compiled")
    if any(name.startswith(KEPT) for part in (shell._parameters, shell._buffers, shell._modules) for name in part):
        raise Untraceable(f"what it calls {KEPT}... is registered")
    own = _originals(shell, model)
    tracer = _Tracer(shell, leaves, frozenset(opaque))
    tracer.run(arguments)
    constants = {name: own.get(id(tensor), (tensor,))[0] for name, tensor in tracer.constants.items()}
    return Traced(tracer.graph, constants, tracer.failures, tracer.statements, frozenset(tracer.asked))


def recorded(module: fx.GraphModule, leaves: tuple[type[nn.Module], ...]) -> Traced | None:
    """What `trace` would find in a module whose graph is what it runs; None if it calls what has to be traced too."""
    graph, constants = fx.Graph(), dict[str, Tensor]()
    graph.output(graph.graph_copy(module.graph, {}))
    for node in graph.nodes:
        node.meta = {"path": ""}
        if node.op == "call_module":
            called = module.get_submodule(str(node.target))
            python = hooked(called) or own_call(called) or isinstance(called, torch.jit.ScriptModule)
            if python or not _is_leaf(called, leaves):
                return None
            node.meta["path"] = node.target
        elif node.op == "get_attr":
            constants[str(node.target)] = operator.attrgetter(str(node.target))(module)
            node.meta["path"] = str(node.target).rpartition(".")[0]
    return Traced(graph, constants, {}, {}, frozenset())


def _originals(shell: nn.Module, model: nn.Module) -> dict[int, tuple[Tensor, Tensor]]:
    """id of a tensor in the copy that no module registers -> (the model's, that one, so that no other gets its id)"""
    pairs = zip(shell.modules(), model.modules(), strict=False)  # a __deepcopy__ of the user's may leave parts out
    both = ((value, vars(copied).get(name)) for copied, own in pairs for name, value in vars(own).items())
    return {id(b): (a, b) for a, b in both if isinstance(a, Tensor) and isinstance(b, Tensor)}


class _Tensors(dict[str, Any]):
    """A module's parameters or buffers: reading one gives its proxy, made on first use; writing that puts it back."""

    def __init__(self, tensors: Mapping[str, Tensor | None], tracer: _Tracer) -> None:
        super().__init__(tensors)
        self._tracer = tracer

    def __getitem__(self, name: str) -> Any:
        tensor = super().__getitem__(name)
        return tensor if tensor is None or isinstance(tensor, Value) else self._tracer.constant(tensor)

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, original(value))

    def values(self) -> Any:
        return [self[name] for name in self]

    def items(self) -> Any:
        return [(name, self[name]) for name in self]

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self.keys() else default


class _Tracer(fx.Tracer):
    def __init__(self, shell: nn.Module, leaves: tuple[type[nn.Module], ...], opaque: frozenset[str]) -> None:
        super().__init__()
        self.root = shell
        self.graph = fx.Graph(tracer_cls=type(self))
        self.constants: dict[str, Tensor] = {}
        self.failures: dict[str, str] = {}
        self.asked: set[str] = set()
        self._containers: frozenset[str] = frozenset()
        self._keeping = Keeping(self)
        self._reasons: dict[str, str] = {}  # why modules failed the first time
        self._before: Snapshot = {}
        self._leaves = leaves
        self._opaque = opaque
        self._path = ""
        self._derived = False  # whether an argument is one that `as_it_is_said` changes
        self._made: dict[str, Value] = {}
        self._names = {id(t): name for name, t in (*shell.named_buffers(), *shell.named_parameters())}
        self._kept: list[Tensor] = []
        self._numbers: set[fx.Node] = set()
        self._refused = 0
        self._probes: list[tuple[FrameType, int]] = []
        self._context = _context()
        for path, module in list(shell.named_modules()):
            self._prepare(module, path)

    @property
    def statements(self) -> dict[str, KeptStatement]:
        """Those that stay Python, by the path that their nodes name."""
        return self._keeping.statements

    def run(self, arguments: Arguments) -> None:
        """Trace the root's own forward into `graph`."""
        self._before = snapshot(self.root)
        try:
            with torch.set_grad_enabled(torch.is_grad_enabled()):  # as it was, whatever the forward does
                result = self._result(arguments)
                self._require_same_again(arguments, result)
            self.create_node("output", "output", (result,), {})
        except Remembers:
            raise
        except Exception as error:  # the user's forward
            name = type(self.root).__name__
            raise Untraceable(f"{name}.forward cannot be traced: {reason_of(error)}") from error

    def _result(self, arguments: Arguments) -> Any:
        """Trace one call; what it returns, as arguments of a node."""
        self._containers = arguments.containers
        inputs = [self.create_proxy("placeholder", name, (), {}) for name in arguments.inputs]
        args, kwargs = arguments.call(inputs)
        with Factories(self):
            result = (self.root if own_call(self.root) else self.root.forward)(*args, **kwargs)
        require_plain(result)
        self._require_unrefused(0)
        return self.create_arg(result)

    def _require_same_again(self, arguments: Arguments, result: Any) -> None:
        """Trace a second call, and forget it: attributes that the first one wrote to, and that make no difference to
        the second, are a cache.  Raises Remembers if it is another program than the first.
        """
        changed = changes(self.root, self._before)
        if changed and any(map(hooks_of, self.root.modules())):
            raise Remembers(changed)
        first, between = list(self.graph.nodes), snapshot(self.root) if changed else self._before
        again = self._result(arguments)
        second = list(self.graph.nodes)[len(first) :]
        other = other_program(first, second, (result, again), self.constants)
        changed = changes(self.root, between) or (changed if other is not None else ())
        if changed:
            raise Remembers(changed)
        if other is not None:
            raise Remembers((other,), ANOTHER)
        self._erase_after(next(reversed(first), None))

    # -- what proxies ask --------------------------------------------------------------------------------------------

    def refusal(self, reason: str) -> TraceError:
        """The error for what a proxy cannot answer; it counts even where the user's code catches it."""
        self._refused += 1
        return TraceError(reason)

    def probed(self, frame: FrameType) -> None:
        """`frame` asked for a number; if torch asked for it, the call will be recorded, and `settled`."""
        self._probes.append((frame, frame.f_lasti))

    def settled(self, frame: FrameType) -> None:
        """What `frame` asked was torch's way of finding out that the call has to be recorded."""
        place = (frame, frame.f_lasti)
        self._refused -= self._probes.count(place)
        self._probes = [other for other in self._probes if other != place]

    def _require_unrefused(self, before: int) -> None:
        if self._refused > before:
            raise TraceError("asks for a value that only the run will know, and catches the error")

    def constant(self, tensor: Tensor) -> Value:
        """The proxy of a tensor that is not computed from the inputs."""
        name = self._names.get(id(tensor))
        if name is None:
            self._kept.append(tensor)  # so that no other tensor gets its id
            name = self._names[id(tensor)] = f"{KEPT}{len(self._kept) - 1}"
        if name not in self._made:
            self.constants[name] = tensor
            node = self.create_node("get_attr", name, (), {})
            node.meta["path"] = name.rpartition(".")[0]
            self._made[name] = ConstantValue(node, self, tensor)
        return self._made[name]

    # -- what torch.fx asks a tracer ---------------------------------------------------------------------------------

    def proxy(self, node: fx.Node) -> Any:
        shown = node.op == "placeholder" and node.target in self._containers
        if shown or _has_parts(node) or self._is_unknown(node):
            return ResultValue(node, self)
        if not self._is_number(node):
            return TensorValue(node, self)
        self._numbers.add(node)
        return Value(node, self)

    def _is_unknown(self, node: fx.Node) -> bool:
        """Whether it is what a module that stays Python returns, or an item or an attribute of that."""
        while _is_part(node) and isinstance(node.args[0], fx.Node):
            node = node.args[0]
        return node.op == "call_module" and (str(node.target) in self._opaque or str(node.target) in self.failures)

    def _is_number(self, node: fx.Node) -> bool:
        """Whether the value is a shape, a size, or computed from sizes alone: then it is not a tensor."""
        if node.target in MAKING:
            return False
        question = node.op == "call_method" and node.target in ("size", "dim", "numel")
        attribute = node.target is getattr and node.args[1] in QUESTIONS
        return question or attribute or (bool(node.args) and self._numbers.issuperset(node.all_input_nodes or [node]))

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Value):
            return a.node
        if isinstance(a, torch.ScriptObject):
            raise self.refusal("has weights that are packed, and no tensors")
        if type(a) is OrderedDict:  # which torch.fx would make a dict
            return self.create_node("call_function", OrderedDict, (self.create_arg(list(a.items())),), {})
        if is_dataclass(a) and isinstance(a, dict):  # as transformers' outputs are; torch.fx would make a dict
            given = {field.name: self.create_arg(getattr(a, field.name)) for field in fields(a)}
            return self.create_node("call_function", type(a), (), given)
        self._derived |= is_derived(a)
        return self.constant(a).node if isinstance(a, Tensor) else super().create_arg(a)

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **options: Any) -> fx.Node:
        if _context() != self._context:
            raise self.refusal("switches gradients or autocast")
        if self._derived:
            self._derived = False
            if kind not in ("call_function", "call_method") or isinstance(target, type):
                raise self.refusal("passes on a number of a class that generated code cannot name")
            args, kwargs = map_aggregate((args, kwargs), as_it_is_said)
        node = super().create_node(kind, target, args, kwargs, *more, **options)
        node.meta["path"] = self._path
        return node

    # -- modules -----------------------------------------------------------------------------------------------------

    def _prepare(self, module: nn.Module, path: str) -> None:
        """Give the instance a forward that records."""
        has_hooks, overridden = hooked(module) and path != "", own_call(module)
        leaf = has_hooks or (path != "" and (path in self._opaque or _is_leaf(module, self._leaves)))
        if has_hooks:
            self.failures[path] = "it has hooks, which see its inputs and outputs"
        elif leaf and isinstance(module, torch.jit.ScriptModule):
            self.failures[path] = "it is scripted, and has no Python left to trace"
        if leaf:
            call = self._leaf_call(path, module)
        elif asks_for_type(module) or asks_for_identity(module):
            what = "type" if asks_for_type(module) else "identity"
            refusing = self._refusing(f"compares the {what} of what may be a tensor")
            call = self._inlined_call(path, module, refusing, overridden)
        else:
            call = self._inlined_call(path, module, wrapped(module) or module.forward, overridden)
        if leaf and overridden:
            call = self._refusing(f"calls {path}, which stays Python and has a __call__ of its own")
        attributes = vars(module)
        attributes.update({name: {} for name in HOOKS if attributes.get(name) != {}})
        attributes["_compiled_call_impl"] = call
        attributes["forward"] = self._refusing("calls forward by name, past the hooks") if has_hooks else call
        attributes["__reduce_ex__"] = self._refusing("copies a module")  # a copy would record calls of this one
        attributes["_parameters"] = _Tensors(module._parameters, self)
        attributes["_buffers"] = _Tensors(module._buffers, self)
        if isinstance(module, nn.modules.batchnorm._NormBase):
            attributes["_check_input_dim"] = lambda x: None  # asks for the rank, and computes nothing

    def _refusing(self, reason: str) -> Callable[..., Any]:
        def refuse(*args: Any, **kwargs: Any) -> Any:
            raise self.refusal(reason)

        return refuse

    def _leaf_call(self, path: str, module: nn.Module) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if changes(module, self._before):  # the graph will call it as it was
                raise self._for_the_moment()
            result = self.create_proxy("call_module", path, args, kwargs)
            result.node.meta["path"] = path
            if path in self._opaque or path in self.failures:
                hand_over((*args, *kwargs.values()), path, self)
            return result

        return call

    def _inlined_call(
        self, path: str, module: nn.Module, forward: Callable[..., Any], overridden: bool
    ) -> Callable[..., Any]:
        leaf, hooks = self._leaf_call(path, module), weight_hooks(module)

        def attempt(*args: Any, **kwargs: Any) -> tuple[Any, Exception | None]:
            """(the result, None), or what the forward raised, with everything as it was before."""
            last, outer, self._path = next(iter(reversed(self.graph.nodes)), None), self._path, path
            refused, given = self._refused, contents((*args, *kwargs.values()))
            try:
                result = _with_weights(module, hooks, self._keeping.applied(forward, path))(*args, **kwargs)
                self._require_unrefused(refused)
                return result, None
            except Remembers:
                raise
            except Exception as error:  # noqa: BLE001 - the user's forward: whatever it cannot do with proxies
                self._erase_after(last)
                self._refused = refused
                restore(given)
                return None, error
            finally:
                self._path = outer

        def call(*args: Any, **kwargs: Any) -> Any:
            if hooks_of(module) or vars(module).get("forward") is not call:
                raise self._for_the_moment()
            result, first = attempt(*args, **kwargs)
            if first is None:
                return result
            error: Exception | None = first
            one_more = self._keeping.one_more
            while error is not None and not overridden and one_more(error, forward, path, self._is_as_before):
                result, error = attempt(*args, **kwargs)
            if error is None:
                return result
            if path == "" or overridden:  # its __call__ goes on around it, so that its parent has to stay Python
                raise first
            self.failures[path] = self._reasons.setdefault(path, reason_of(first))
            return leaf(*args, **kwargs)

        return call

    def _for_the_moment(self) -> Remembers:
        """The error for a forward that gives a module hooks, weights or settings for one call; it counts even where
        the user's code catches it.
        """
        self._refused += 1
        return Remembers((self._path,), FOR_THE_MOMENT)

    def _is_as_before(self) -> bool:
        """Whether no forward has left anything in the attributes of a module yet."""
        return not changes(self.root, self._before)

    def _erase_after(self, last: fx.Node | None) -> None:
        for node in list(reversed(self.graph.nodes)):
            if node is last:
                return
            if node.op == "get_attr":
                del self._made[str(node.target)], self.constants[str(node.target)]
            self.graph.erase_node(node)


def _is_leaf(module: nn.Module, leaves: tuple[type[nn.Module], ...]) -> bool:
    if type(module) in leaves and not weight_hooks(module):
        return True
    cls = torch_class(module)
    return isinstance(module, torch.jit.ScriptModule) or (cls is not None and not issubclass(cls, CONTAINERS))


def _has_parts(node: fx.Node) -> bool:
    """Whether it is a tuple of tensors, or some of its entries."""
    while node.target is operator.getitem and isinstance(node.args[1], slice) and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    name = name_of(node)
    along = len(node.args) > 1 or "dim" in node.kwargs
    return node.op in ("call_function", "call_method") and (name in SEVERAL or (name in ("max", "min") and along))


def _is_part(node: fx.Node) -> bool:
    """Whether it is an item of its operand, or an attribute that tensors do not have."""
    attribute = node.target is getattr and not hasattr(Tensor, str(node.args[1]))
    return attribute or node.target is operator.getitem


def _with_weights(module: nn.Module, hooks: Sequence[Any], forward: Callable[..., Any]) -> Callable[..., Any]:
    """The forward behind the hooks that compute weights; the attributes that these set are put back."""

    def call(*args: Any, **kwargs: Any) -> Any:
        before = dict(vars(module))
        for hook in hooks:
            hook(module, args)
        try:
            return forward(*args, **kwargs)
        finally:
            vars(module).update({name: before[name] for name in before if vars(module)[name] is not before[name]})

    return call if hooks else forward


def _context() -> tuple[bool, ...]:
    """What surrounds an operator without being an argument of it."""
    return torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")
