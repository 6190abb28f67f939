"""What torch or Python keep for the whole process or a thread, and a compilation must not disturb."""

from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from threading import RLock

import torch
from torch.overrides import _pop_mode as pop_function_mode
from torch.utils._python_dispatch import _pop_mode as pop_dispatch_mode

ONE_AT_A_TIME = RLock()  # held for what only one thread may do at a time


@contextmanager
def modes_kept() -> Generator[None]:
    """Gradient, dispatch and function modes of this thread are afterwards what they were; inference mode is left
    meanwhile, as autograd does not take the tensors that are made in it.

    Leaving them is what every `with` does, unless Ctrl-C hits it between entering a mode and taking note of that.
    """
    gradients = torch.is_grad_enabled()
    functions, dispatches = torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()
    inference = torch.is_inference_mode_enabled()
    try:
        with torch.inference_mode(False) if inference else nullcontext():
            torch.set_grad_enabled(gradients)  # which leaving inference mode turns on
            yield
    finally:
        while torch._C._len_torch_function_stack() > functions:
            pop_function_mode()
        while torch._C._len_torch_dispatch_stack() > dispatches:
            pop_dispatch_mode()
        torch.set_grad_enabled(gradients)
