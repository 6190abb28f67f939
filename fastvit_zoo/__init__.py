"""FastViT (Vasu et al., arXiv 2303.14189) in plain PyTorch, in training form.

`fastvit_zoo.data` has the photograph, the published preprocessing and the class names; it needs `repcompile[zoo]`.
"""

from fastvit_zoo.config import list_models
from fastvit_zoo.errors import ZooError
from fastvit_zoo.model import create_model

__all__ = ["ZooError", "create_model", "list_models"]
