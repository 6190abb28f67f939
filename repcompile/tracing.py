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
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from types import FrameType, ModuleType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError
from torch.overrides import TorchFunctionMode

from repcompile.errors import ModelError, Untraceable

CALLED_ELSEWHERE = (fx.GraphModule, torch.jit.ScriptModule)  # their own __call__ ends in nn.Module's
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
    if not {id(module) for module in model.modules()}.isdisjoint(map(id, shell.modules())):
        raise ModelError(f"{type(model).__name__} has a module that deepcopy does not copy, so it cannot be compiled")
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
    """A value of the graph."""

    tracer: Any

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("tracer", "node", "root", "attr", "_node"):
            raise self.tracer.refusal(f"assigns to .{name} of a tensor")
        object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _Attribute(self, name)

    def __iter__(self) -> Iterator[fx.Proxy]:
        """Unpacking (`b, c, h, w = x.shape`) is known by its instruction; any other iteration needs the values."""
        frame = inspect.currentframe()
        count = _unpacked(frame.f_back if frame else None)
        if count is None:
            raise self.tracer.refusal("iterates over a value that only the run will know")
        self.node.meta["unpacked"] = count
        return iter([self.tracer.create_proxy("call_function", operator.getitem, (self, i), {}) for i in range(count)])

    def __ceil__(self) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", math.ceil, (self,), {})

    def __floor__(self) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", math.floor, (self,), {})


def _unknown(question: str) -> Callable[..., Any]:
    def refuse(self: _Proxy, *args: Any) -> Any:
        raise self.tracer.refusal(f"needs {question} of a value that only the run will know")

    return refuse


for _name, _question in {
    "__bool__": "the truth",
    "__float__": "the number",
    "__int__": "the number",
    "__complex__": "the number",
    "__index__": "the number",
    "__len__": "the length",
    "__contains__": "the elements",
}.items():
    setattr(_Proxy, _name, _unknown(_question))


def _inplace(function: Callable[[Any, Any], Any]) -> Callable[[_Proxy, Any], fx.Proxy]:
    def record(self: _Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return record


class _Tensor(_Proxy):
    """A value that is a tensor, also to a forward that asks `isinstance(x, torch.Tensor)`.

    Augmented assignment is recorded as what it is: in place.
    """

    @property
    def __class__(self) -> type[Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return Tensor

    def __getattr__(self, name: str) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        if name == "_is_param" or not hasattr(Tensor, name):  # the first is what `isinstance(x, nn.Parameter)` asks
            raise AttributeError(name)
        return _Attribute(self, name)


for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "ipow", "imod", "iand", "ior", "ixor"):
    setattr(_Tensor, f"__{_name}__", _inplace(getattr(operator, _name)))


class _Attribute(_Proxy):
    """`x.name`: a method if it is called, a `getattr` node if it is used."""

    def __init__(self, root: fx.Proxy, attr: str) -> None:
        self.root = root
        self.attr = attr
        self.tracer = root.tracer
        self._node: fx.Node | None = None

    @property
    def node(self) -> Any:
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
    def _is_param(self) -> bool:
        return isinstance(object.__getattribute__(self, "_tensor"), nn.Parameter)

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
        self._refused = 0
        self._context = _context()
        self._signature = inspect.signature(shell.forward)
        for path, module in list(shell.named_modules()):
            self._prepare(module, path)

    def run(self) -> None:
        """Trace the root's own forward into `graph`."""
        try:
            placeholders = self._placeholders()
            with _Factories(self):
                result = self.root.forward(*placeholders)
            _require_plain(result)
            self.create_node("output", "output", (self.create_arg(result),), {})
            self._require_unrefused(0)
        except Exception as error:  # the user's forward
            name = type(self.root).__name__
            raise Untraceable(f"{name}.forward cannot be traced: {_reason(error)}") from error

    def refusal(self, reason: str) -> TraceError:
        """The error for what a proxy cannot answer; it counts even where the user's code catches it."""
        self._refused += 1
        return TraceError(reason)

    def _require_unrefused(self, before: int) -> None:
        if self._refused > before:
            raise TraceError("asks for a value that only the run will know, and catches the error")

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
        if _context() != self._context:
            raise self.refusal("switches gradients or autocast")
        node = super().create_node(*args, **kwargs)
        node.meta["path"] = self._path
        return node

    # -- modules -----------------------------------------------------------------------------------------------------

    def _prepare(self, module: nn.Module, path: str) -> None:
        hooked = any(vars(module).get(name) for name in HOOKS)
        leaf = path != "" and (path in self._opaque or hooked or self._is_leaf(module))
        overridden = type(module).__call__ is not nn.Module.__call__ and not isinstance(module, CALLED_ELSEWHERE)
        if (hooked or overridden) and path == "":
            raise Untraceable("it has hooks, or a __call__ of its own")
        if hooked:
            self.failures[path] = "it has hooks, which see its inputs and outputs"
        forward = module.forward
        attributes = vars(module)
        for name in HOOKS:
            attributes[name] = {}
        attributes["_compiled_call_impl"] = None
        attributes["forward"] = self._leaf_call(path) if leaf else self._inlined_call(path, forward)
        if overridden:
            attributes["forward"] = self._refusing_call
        attributes["_parameters"] = _Tensors(module._parameters, path, self)
        attributes["_buffers"] = _Tensors(module._buffers, path, self)

    def _is_leaf(self, module: nn.Module) -> bool:
        if isinstance(module, self._leaves) and type(module) in self._leaves:
            return True
        cls = torch_class(module)
        return isinstance(module, torch.jit.ScriptModule) or (cls is not None and not issubclass(cls, CONTAINERS))

    def _refusing_call(self, *args: Any, **kwargs: Any) -> Any:
        raise self.refusal("calls a module with a __call__ of its own")

    def _leaf_call(self, path: str) -> Callable[..., fx.Proxy]:
        def call(*args: Any, **kwargs: Any) -> fx.Proxy:
            stays_python = path in self._opaque or path in self.failures
            if stays_python and any(isinstance(arg, list | dict) for arg in (*args, *kwargs.values())):
                raise self.refusal(f"passes a list or dict to {path}, which stays Python and might change it")
            result = self.create_proxy("call_module", path, args, kwargs)
            result.node.meta["path"] = path
            return result

        return call

    def _inlined_call(self, path: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        leaf = self._leaf_call(path)

        def call(*args: Any, **kwargs: Any) -> Any:
            last, outer, self._path = next(iter(reversed(self.graph.nodes)), None), self._path, path
            refused = self._refused
            try:
                result = forward(*args, **kwargs)
                self._require_unrefused(refused)
                return result
            except Exception as error:  # the user's forward: whatever it cannot do with proxies
                if path == "":
                    raise
                self._erase_after(last)
                self.failures[path] = _reason(error)
                self._refused = refused
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
    """Noise that a forward draws stays in the graph, drawn anew at each run; other tensors of its own are constant."""

    def __init__(self, tracer: _Tracer) -> None:
        super().__init__()
        self._tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if any(isinstance(arg, fx.Proxy) for arg in (*args, *kwargs.values())):
            known = func in _DRAWS or func in _FILLS
            return self._tracer.create_proxy("call_function", func, args, kwargs) if known else func(*args, **kwargs)
        if func in _DRAWS:
            return self._tracer.create_proxy("call_function", func, args, kwargs)
        if name.removesuffix("_") in _NOISE:
            raise self._tracer.refusal(f"draws random numbers by {name}")
        return func(*args, **kwargs)


_DRAWS = frozenset(
    getattr(torch, name)
    for name in "bernoulli empty empty_like multinomial normal poisson rand rand_like randint randint_like randn "
    "randn_like randperm".split()
)
_FILLS = frozenset(
    getattr(torch, name)
    for name in "arange eye full full_like linspace logspace ones ones_like tensor zeros zeros_like".split()
)
_NOISE = frozenset(
    "alpha_dropout bernoulli binomial cauchy dropout dropout1d dropout2d dropout3d empty_strided exponential "
    "feature_alpha_dropout geometric gumbel_softmax log_normal multinomial new_empty normal poisson rand_like "
    "randint_like randn_like random rrelu uniform".split()
)


def _context() -> tuple[bool, ...]:
    """What surrounds an operator without being an argument of it."""
    return torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")


def _require_plain(result: Any) -> None:
    """Only containers that torch.fx gives back as they are."""
    if isinstance(result, fx.Proxy):
        return
    if isinstance(result, dict | list | tuple):
        if type(result) not in (dict, list, tuple) and not hasattr(result, "_fields"):
            raise TraceError(f"returns a {type(result).__name__}")
        for item in result.values() if isinstance(result, dict) else result:
            _require_plain(item)


_Snapshot = dict[str, Any]


def _attributes(module: nn.Module) -> _Snapshot:
    """What a module's attributes are worth, as far as one can compare: a forward that changes them has a memory."""
    own = {name: _worth(value) for name, value in vars(module).items() if name not in _TABLES}
    for table in _TABLES:
        entries = vars(module).get(table)
        if isinstance(entries, dict):
            own[table] = {name: id(value) for name, value in dict.items(entries)}
    return own


_TABLES = ("_parameters", "_buffers", "_modules", "forward")
DEPTH = 4


def _worth(value: Any, depth: int = DEPTH) -> Any:
    if value is None or isinstance(value, int | float | str | bytes):
        return value
    if isinstance(value, Tensor) and not isinstance(value, fx.Proxy):
        return id(value), value._version
    if depth and type(value) in (list, tuple, set, frozenset, deque):
        return id(value), [_worth(item, depth - 1) for item in value]
    if depth and isinstance(value, dict):
        return id(value), {str(name): _worth(item, depth - 1) for name, item in dict.items(value)}
    state = getattr(value, "__dict__", None)
    plain = not isinstance(value, nn.Module | type | ModuleType | fx.Proxy) and not callable(value)
    if depth and plain and isinstance(state, dict):
        return id(value), {name: _worth(item, depth - 1) for name, item in state.items()}
    return id(value)


def _unpacked(frame: FrameType | None) -> int | None:
    """Number of names that the running instruction of `frame` unpacks to, None if it does something else."""
    if frame is None:
        return None
    code, last = frame.f_code.co_code, frame.f_lasti
    return code[last + 1] if dis.opname[code[last]] == "UNPACK_SEQUENCE" else None


def _reason(error: Exception) -> str:
    text = str(error).strip().split("\n")[0] or type(error).__name__
    return f"{type(error).__name__}: {text}"
