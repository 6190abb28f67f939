"""torch.export kept from disturbing others, and watched: what the followed forward asks and no guard tells."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from threading import get_ident
from types import FrameType
from typing import Any, TextIO, cast

import torch
from torch.fx.experimental import _config
from torch.overrides import TorchFunctionMode

from repcompile.threads import ONE_AT_A_TIME

SYMBOLIC: Any = _config
TORCH = os.path.dirname(torch.__file__) + os.sep
EXPORTING = ("_is_compiling_flag", "_is_exporting_flag")  # global, of torch.compiler
LAYERS = (os.path.join(TORCH, "nn") + os.sep,)  # torch's own modules ask as users' do
KINDS = frozenset(
    "device dtype element_size get_device is_complex is_cpu is_cuda is_floating_point is_mps is_signed "
    "is_xpu itemsize type".split()
)
MEMORY = frozenset(
    "_version data_ptr grad grad_fn is_contiguous is_leaf requires_grad storage_offset stride untyped_storage".split()
)


class Observed(TorchFunctionMode):
    """Which questions about tensors a forward asks, outside of torch's own machinery.

    kinds: whether it asks for a dtype or a device.  memory: what it asks of where the numbers are, and of gradients.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kinds = False
        self.memory: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = _name(func)
        if name in KINDS or name in MEMORY:
            place = _place(sys._getframe(1))
            torchs_own = place.startswith(TORCH)
            self.kinds |= name in KINDS and (not torchs_own or place.startswith(LAYERS))
            self.memory |= MEMORY & ({name} if not torchs_own else set())
        return func(*args, **(kwargs or {}))


def _name(func: Any) -> str:
    name = getattr(func, "__name__", "")
    return getattr(getattr(func, "__self__", None), "__name__", "") if name == "__get__" else name


def _place(frame: FrameType | None) -> str:
    """The file of whoever asks."""
    while frame is not None and frame.f_code.co_name == "__torch_function__":  # of a mode of torch.export's
        frame = frame.f_back
    return frame.f_code.co_filename if frame is not None else ""


@contextmanager
def undisturbed() -> Generator[None]:
    """One export at a time, without a word, and with sizes of 1 like any other."""
    with ExitStack() as stack:
        stack.enter_context(ONE_AT_A_TIME)
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(_silent())
        stack.enter_context(torch.enable_grad())  # runs that are compared do without: a forward that asks is caught
        stack.enter_context(SYMBOLIC.patch(backed_size_oblivious=True))
        yield


@contextmanager
def as_at_any_run() -> Generator[None]:
    """Inside an export: whoever asks whether it is compiled or exported hears what every other run hears."""
    compiler: Any = torch.compiler
    before = {name: getattr(compiler, name) for name in EXPORTING if hasattr(compiler, name)}
    vars(compiler).update(dict.fromkeys(before, False))
    try:
        yield
    finally:
        vars(compiler).update(before)


class _Others:
    """A stream for all threads but one, whose words are dropped."""

    def __init__(self, stream: Any, thread: int) -> None:
        self._stream, self._thread = stream, thread

    def write(self, text: str) -> int:
        return len(text) if get_ident() == self._thread else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _silent() -> Generator[None]:
    """Nothing that this thread logs, or prints as an error, is shown."""
    thread, stream = get_ident(), sys.stderr

    def silent(record: logging.LogRecord) -> bool:
        return record.thread != thread

    known = [logger for logger in logging.root.manager.loggerDict.values() if isinstance(logger, logging.Logger)]
    handlers = {handler for logger in (logging.root, *known) for handler in logger.handlers}
    handlers |= {logging.lastResort} if logging.lastResort is not None else set()
    for handler in handlers:
        handler.addFilter(silent)
    sys.stderr = muted = cast(TextIO, _Others(stream, thread))
    try:
        yield
    finally:
        sys.stderr = stream if sys.stderr is muted else sys.stderr
        for handler in handlers:
            handler.removeFilter(silent)
