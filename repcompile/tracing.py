"""torch.fx tracing, hardened.

Given: a module.  Result: its graph, the tensors that `get_attr` nodes name, and the modules that could not be traced.

Unlike `torch.fx.symbolic_trace` it patches no class, so that other threads never notice: a copy of the module's
structure (the tensors are shared, and never written to) gets a wrapped `forward` on every instance and proxies in place
of its parameters and buffers. A module whose `forward` cannot run on proxies becomes one node of its parent's graph.
"""

from __future__ import annotations

import copy
import dis
import inspect
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from types import FrameType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError
from torch.overrides import TorchFunctionMode

from repcompile.errors import ModelError, Untraceable

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
KEPT = "constant_"  # names of tensors that no module registers
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class Changed(Exception):
    """A forward wrote to attributes, which no graph shows.  paths: the modules that may have done it."""

    def __init__(self, paths: tuple[str, ...]) -> None:
        super().__init__("its forward changes attributes of the module")
        self.paths = paths


def trace(
    model: nn.Module, leaves: tuple[type[nn.Module], ...], opaque: Mapping[str, str]
) -> tuple[fx.Graph, dict[str, Tensor], dict[str, str]]:
    """(graph, constants, failures) of a model in eval mode.

    leaves: classes that stay one node.  opaque: paths that must stay one node.
    Raises Changed if a forward wrote to attributes, ModelError if the root cannot be copied or traced.
    """
    try:
        shell = copy.deepcopy(model, {id(t): t for t in (*model.parameters(), *model.buffers())})
    except Exception as error:  # the user's own __deepcopy__ or attributes
        raise ModelError(f"{type(model).__name__} cannot be copied ({error}), so it cannot be compiled") from error
    tracer = _Tracer(shell, leaves, frozenset(opaque))
    before = {path: _attributes(module) for path, module in shell.named_modules()}
    tracer.run()
    changed = tuple(path for path, module in shell.named_modules() if _attributes(module) != before.get(path))
    if changed:
        raise Changed(changed)
    return tracer.graph, tracer.constants, tracer.failures


def torch_class(module: nn.Module) -> type[nn.Module] | None:
    """The torch.nn class whose computation `module` has: its own, or one that it inherits and overrides nothing of."""
    for index, cls in enumerate(type(module).__mro__):
        if cls.__module__.startswith("torch.nn.modules"):
            mine = {name for sub in type(module).__mro__[:index] for name in vars(sub)}.union(vars(module))
            return cls if mine.isdisjoint(_behaviour(cls)) else None
    return None


@cache
def _behaviour(cls: type[nn.Module]) -> frozenset[str]:
    """Names that decide what a torch.nn class computes."""
    return frozenset(name for base in cls.__mro__ if base is not object for name in vars(base)) - _NEUTRAL


_NEUTRAL = frozenset(
    "__annotate__ __annotate_func__ __annotations__ __annotations_cache__ __constants__ __deepcopy__ __dict__ __doc__ "
    "__firstlineno__ __getstate__ __init__ __module__ __orig_bases__ __parameters__ __qualname__ __repr__ __setstate__ "
    "__static_attributes__ __weakref__ _compiled_call_impl _load_from_state_dict _version extra_repr reset_parameters "
    "reset_running_stats".split()
)


class _Proxy(fx.Proxy):
    """A value of the graph.  Augmented assignment is recorded as what it is: in place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("tracer", "node", "root", "attr", "_node"):
            raise TraceError(f"assigns to .{name} of a tensor")
        object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        if name == "_is_param":  # what `isinstance(x, nn.Parameter)` asks
            raise AttributeError(name)
        return _Attribute(self, name)

    def __iter__(self) -> Iterator[fx.Proxy]:
        """Unpacking (`b, c, h, w = x.shape`) is known by its instruction; any other iteration needs the values."""
        frame = inspect.currentframe()
        count = _unpacked(frame.f_back if frame else None)
        if count is None:
            raise TraceError("iterates over a value that only the run will know")
        self.node.meta["unpacked"] = count
        return iter([self.tracer.create_proxy("call_function", operator.getitem, (self, i), {}) for i in range(count)])

    def __ceil__(self) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", math.ceil, (self,), {})

    def __floor__(self) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", math.floor, (self,), {})


def _inplace(function: Callable[[Any, Any], Any]) -> Callable[[_Proxy, Any], fx.Proxy]:
    def record(self: _Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return record


for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "ipow", "imod", "imatmul", "iand", "ior", "ixor"):
    setattr(_Proxy, f"__{_name}__", _inplace(getattr(operator, _name)))


class _Tensor(_Proxy):
    """A value that is a tensor, also to a forward that asks `isinstance(x, torch.Tensor)`."""

    @property
    def __class__(self) -> type[Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return Tensor


class _Attribute(_Proxy):
    """`x.name`: a method if it is called, a `getattr` node if it is used."""

    def __init__(self, root: fx.Proxy, attr: str) -> None:
        self.root = root
        self.attr = attr
        self.tracer = root.tracer
        self._node: fx.Node | None = None

    @property
    def node(self) -> fx.Node:  # type: ignore[override]
        if self._node is None:
            self._node = self.tracer.create_proxy("call_function", getattr, (self.root, self.attr), {}).node
        return self._node

    def __call__(self, *args: Any, **kwargs: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_method", self.attr, (self.root, *args), kwargs)


class _Parameter(_Tensor):
    """A parameter or buffer: an unknown value of known shape and dtype."""

    def __init__(self, node: fx.Node, tracer: fx.Tracer, tensor: Tensor) -> None:
        super().__init__(node, tracer)
        object.__setattr__(self, "_tensor", tensor)

    @property
    def shape(self) -> torch.Size:
        return object.__getattribute__(self, "_tensor").shape

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def dim(self) -> int:
        return len(self.shape)

    def size(self, axis: int | None = None) -> int | torch.Size:
        return self.shape if axis is None else self.shape[axis]

    def numel(self) -> int:
        return self.shape.numel()

    def is_floating_point(self) -> bool:
        return bool(object.__getattribute__(self, "_tensor").is_floating_point())


class _Tensors(dict[str, Any]):
    """A module's parameters or buffers: reading one gives its proxy, made on first use."""

    def __init__(self, tensors: Mapping[str, Tensor | None], prefix: str, tracer: _Tracer) -> None:
        super().__init__(tensors)
        self._prefix = prefix
        self._tracer = tracer

    def __getitem__(self, name: str) -> Any:
        tensor = super().__getitem__(name)
        return tensor if tensor is None or isinstance(tensor, fx.Proxy) else self._tracer.constant(tensor)

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
        self._leaves = leaves
        self._opaque = opaque
        self._path = ""
        self._made: dict[str, fx.Proxy] = {}
        self._names = {id(t): name for name, t in (*shell.named_buffers(), *shell.named_parameters())}
        self._kept: list[Tensor] = []
        self._numbers: set[fx.Node] = set()
        self._signature = inspect.signature(shell.forward)
        for path, module in list(shell.named_modules()):
            self._prepare(module, path)

    def run(self) -> None:
        """Trace the root's own forward into `graph`."""
        try:
            placeholders = self._placeholders()
            with _Factories(self):
                result = self.root.forward(*placeholders)
            self.create_node("output", "output", (self.create_arg(result),), {})
        except Exception as error:  # the user's forward
            name = type(self.root).__name__
            raise Untraceable(f"{name}.forward cannot be traced: {_reason(error)}") from error

    def constant(self, tensor: Tensor) -> fx.Proxy:
        """The proxy of a tensor that is not computed from the inputs."""
        name = self._names.get(id(tensor))
        if name is None:
            self._kept.append(tensor)  # so that no other tensor gets its id
            name = self._names[id(tensor)] = f"{KEPT}{len(self._kept) - 1}"
        if name not in self._made:
            self.constants[name] = tensor
            node = self.create_node("get_attr", name, (), {})
            node.meta["path"] = name.rpartition(".")[0]
            self._made[name] = _Parameter(node, self, tensor)
        return self._made[name]

    # -- what torch.fx asks a tracer ---------------------------------------------------------------------------------

    def proxy(self, node: fx.Node) -> fx.Proxy:
        if not self._is_number(node):
            return _Tensor(node, self)
        self._numbers.add(node)
        return _Proxy(node, self)

    def _is_number(self, node: fx.Node) -> bool:
        """Whether the value is a shape, a size, or computed from sizes alone: then it is not a tensor."""
        question = node.op == "call_method" and node.target in ("size", "dim", "numel")
        attribute = node.target is getattr and node.args[1] in ("shape", "ndim")
        return question or attribute or (bool(node.args) and self._numbers.issuperset(node.all_input_nodes or [node]))

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, fx.Proxy):
            return a.node
        return self.constant(a).node if isinstance(a, Tensor) else super().create_arg(a)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta["path"] = self._path
        return node

    # -- modules -----------------------------------------------------------------------------------------------------

    def _prepare(self, module: nn.Module, path: str) -> None:
        hooked = any(vars(module).get(name) for name in HOOKS)
        leaf = path != "" and (path in self._opaque or hooked or self._is_leaf(module))
        if hooked and not leaf:
            raise Untraceable("it has hooks, which see its inputs and outputs")
        if hooked:
            self.failures[path] = "it has hooks, which see its inputs and outputs"
        forward = module.forward
        attributes = vars(module)
        for name in HOOKS:
            attributes[name] = {}
        attributes["_compiled_call_impl"] = None
        attributes["forward"] = self._leaf_call(path) if leaf else self._inlined_call(path, forward)
        attributes["_parameters"] = _Tensors(module._parameters, path, self)
        attributes["_buffers"] = _Tensors(module._buffers, path, self)

    def _is_leaf(self, module: nn.Module) -> bool:
        if isinstance(module, self._leaves) and type(module) in self._leaves:
            return True
        cls = torch_class(module)
        return isinstance(module, torch.jit.ScriptModule) or (cls is not None and not issubclass(cls, CONTAINERS))

    def _leaf_call(self, path: str) -> Callable[..., fx.Proxy]:
        def call(*args: Any, **kwargs: Any) -> fx.Proxy:
            result = self.create_proxy("call_module", path, args, kwargs)
            result.node.meta["path"] = path
            return result

        return call

    def _inlined_call(self, path: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        leaf = self._leaf_call(path)

        def call(*args: Any, **kwargs: Any) -> Any:
            last, outer, self._path = next(iter(reversed(self.graph.nodes)), None), self._path, path
            try:
                return forward(*args, **kwargs)
            except Exception as error:  # the user's forward: whatever it cannot do with proxies
                if path == "":
                    raise
                self._erase_after(last)
                self.failures[path] = _reason(error)
                return leaf(*args, **kwargs)
            finally:
                self._path = outer

        return call

    def _erase_after(self, last: fx.Node | None) -> None:
        for node in list(reversed(self.graph.nodes)):
            if node is last:
                return
            self._made.pop(str(node.target), None) if node.op == "get_attr" else None
            self.graph.erase_node(node)

    def _placeholders(self) -> list[fx.Proxy]:
        """One placeholder for each argument without a default: the others keep the default that the branches saw."""
        required: list[fx.Proxy] = []
        for name, parameter in self._signature.parameters.items():
            if parameter.kind == parameter.VAR_POSITIONAL:
                raise TraceError(f"takes any number of arguments (*{name})")
            if parameter.kind == parameter.VAR_KEYWORD:
                continue
            if parameter.default is not parameter.empty:
                break
            required.append(self.create_proxy("placeholder", name, (), {}))
        return required


class _Factories(TorchFunctionMode):
    """Tensors that a forward makes (`torch.arange(n)`, `torch.randn(3)`) stay in the graph, made anew at each run."""

    def __init__(self, tracer: _Tracer) -> None:
        super().__init__()
        self._tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _FACTORIES:
            return self._tracer.create_proxy("call_function", func, args, kwargs)
        return func(*args, **kwargs)


_FACTORIES = frozenset(
    getattr(torch, name)
    for name in "arange bernoulli empty empty_like eye full full_like linspace logspace normal ones ones_like "
    "rand rand_like randint randint_like randn randn_like randperm tensor zeros zeros_like".split()
)


def _attributes(module: nn.Module) -> dict[str, tuple[int, int]]:
    """What a module's attributes are, by identity, and the lengths of its containers."""
    groups = (vars(module), module._parameters, module._buffers, module._modules)
    return {
        f"{index}.{name}": (id(value), len(value) if isinstance(value, list | dict | set) else 0)
        for index, group in enumerate(groups)
        for name, value in dict.items(group)
    }


def _unpacked(frame: FrameType | None) -> int | None:
    """Number of names that the running instruction of `frame` unpacks to, None if it does something else."""
    if frame is None:
        return None
    code, last = frame.f_code.co_code, frame.f_lasti
    return code[last + 1] if dis.opname[code[last]] == "UNPACK_SEQUENCE" else None


def _reason(error: Exception) -> str:
    text = str(error).strip().split("\n")[0] or type(error).__name__
    return f"{type(error).__name__}: {text}"
