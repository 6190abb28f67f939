"""A picture to classify, the published preprocessing, and what the classes are called."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from fastvit_zoo.errors import ZooError

try:
    import skimage.data
    from PIL import Image
except ImportError:
    Image = skimage = None
try:
    import timm.data.constants
    import timm.data.imagenet_info
    import timm.data.transforms_factory
except ImportError:
    timm = None

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

CROP = 0.9  # the share of the resized picture's side that the centre crop keeps


def photograph() -> "Picture":
    """Chelsea the cat, 451 x 300 RGB, by Stefan van der Walt (CC0): scikit-image carries it, no network is needed."""
    if Image is None or skimage is None:
        raise ZooError("photograph() needs scikit-image and pillow: pip install repcompile[zoo]")
    return Image.fromarray(cast(Any, skimage.data.chelsea()))


def preprocess(image: "Picture", size: int = 256) -> Tensor:
    """The published evaluation transform: resize the shorter side to size / 0.9, bicubic; crop the centre; normalise.

    y = (x / 255 - mean) / std with ImageNet's mean and deviation.
    image: any mode, turned into RGB -> (1, 3, size, size) float32.
    """
    if timm is None:
        raise ZooError("preprocess() needs timm: pip install repcompile[zoo]")
    transform = timm.data.transforms_factory.create_transform(
        (3, size, size),
        interpolation="bicubic",
        mean=timm.data.constants.IMAGENET_DEFAULT_MEAN,
        std=timm.data.constants.IMAGENET_DEFAULT_STD,
        crop_pct=CROP,
    )
    return cast("Callable[[Picture], Tensor]", transform)(image.convert("RGB")).unsqueeze(0)  # (1, 3, size, size)


def preprocessed_photograph() -> Tensor:
    """The photograph as the models want it: (1, 3, 256, 256) float32."""
    return preprocess(photograph())


def class_names() -> list[str]:
    """What the 1000 classes of ImageNet-1K are called, in the order of the logits; class 281 is 'tabby, tabby cat'."""
    if timm is None:
        raise ZooError("class_names() needs timm: pip install repcompile[zoo]")
    imagenet = timm.data.imagenet_info.ImageNetInfo()
    return [imagenet.index_to_description(index) for index in range(imagenet.num_classes())]
