"""Hugging Face transformers: vision models from their configurations, made small."""

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.sweep.subject import Inputs, Subject, images

transformers: Any = importlib.import_module("transformers")


@dataclass(frozen=True, slots=True)
class Recipe:
    """A model class and the options of its configuration; size: of square images, where it takes no other."""

    model: str
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    size: int | None = None


RESNET = {"embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 2, 1, 1]}
BACKBONE = {"out_features": ["stage2", "stage3", "stage4"], **RESNET}
TRANSFORMER = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
DETR = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_queries": 10,
}

RECIPES = {
    "resnet": Recipe("ResNetForImageClassification", RESNET),
    "resnet-basic": Recipe("ResNetForImageClassification", {"layer_type": "basic", **RESNET}),
    "regnet": Recipe("RegNetForImageClassification", {**RESNET, "groups_width": 8}),
    "bit": Recipe("BitForImageClassification", {**RESNET, "num_groups": 4}),
    "convnext": Recipe("ConvNextForImageClassification", {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 2, 1, 1]}),
    "convnextv2": Recipe(
        "ConvNextV2ForImageClassification", {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 2, 1, 1]}
    ),
    "mobilenet_v1": Recipe("MobileNetV1ForImageClassification", {"depth_multiplier": 0.25}),
    "mobilenet_v2": Recipe("MobileNetV2ForImageClassification", {"depth_multiplier": 0.35}),
    "mobilenet_v2-segmentation": Recipe("MobileNetV2ForSemanticSegmentation", {"depth_multiplier": 0.35}),
    "mobilevit": Recipe("MobileViTForImageClassification", {"hidden_sizes": [32, 48, 64]}),
    "mobilevit-segmentation": Recipe("MobileViTForSemanticSegmentation", {"hidden_sizes": [32, 48, 64]}),
    "mobilevitv2": Recipe("MobileViTV2ForImageClassification", {"width_multiplier": 0.5}),
    "efficientnet": Recipe(
        "EfficientNetForImageClassification", {"width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640}
    ),
    "segformer": Recipe(
        "SegformerForSemanticSegmentation", {"hidden_sizes": [16, 32, 48, 64], "decoder_hidden_size": 32}
    ),
    "levit": Recipe(
        "LevitForImageClassification", {"hidden_sizes": [32, 48, 64], "depths": [2, 2, 2], "key_dim": [8, 8, 8]}, 224
    ),
    "levit-teacher": Recipe("LevitForImageClassificationWithTeacher", {"depths": [2, 2, 2]}, 224),
    "pvt": Recipe("PvtForImageClassification", {"depths": [1, 1, 1, 1]}, 224),
    "pvt_v2": Recipe("PvtV2ForImageClassification", {"depths": [1, 1, 1, 1]}),
    "pvt_v2-linear": Recipe("PvtV2ForImageClassification", {"depths": [1, 1, 1, 1], "linear_attention": True}),
    "swin": Recipe("SwinForImageClassification", {"embed_dim": 24, "depths": [1, 2, 1, 1]}, 224),
    "swinv2": Recipe("Swinv2ForImageClassification", {"embed_dim": 24, "depths": [1, 2, 1, 1]}, 224),
    "cvt": Recipe("CvtForImageClassification", {"embed_dim": [16, 48, 96], "depth": [1, 2, 3]}),
    "focalnet": Recipe("FocalNetForImageClassification", {"embed_dim": 24, "depths": [1, 1, 2, 1]}),
    "focalnet-layerscale": Recipe(
        "FocalNetForImageClassification",
        {"embed_dim": 24, "depths": [1, 1, 2, 1], "use_layerscale": True, "use_conv_embed": True},
    ),
    "poolformer": Recipe("PoolFormerForImageClassification", {"depths": [1, 2, 1, 1]}),
    "swiftformer": Recipe("SwiftFormerForImageClassification", {"depths": [1, 1, 2, 1]}),
    "vit": Recipe("ViTForImageClassification", TRANSFORMER, 224),
    "beit": Recipe("BeitForImageClassification", TRANSFORMER, 224),
    "hiera": Recipe("HieraForImageClassification", {"depths": [1, 1, 2, 1]}, 224),
    "dpt": Recipe(
        "DPTForDepthEstimation",
        {
            **TRANSFORMER,
            "num_hidden_layers": 4,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [16, 32, 48, 64],
            "fusion_hidden_size": 32,
            "use_batch_norm_in_fusion_residual": True,
        },
        384,
    ),
    "detr": Recipe("DetrForObjectDetection", {**DETR, "backbone_config": ("ResNetConfig", RESNET)}),
    "conditional_detr": Recipe(
        "ConditionalDetrForObjectDetection", {**DETR, "backbone_config": ("ResNetConfig", RESNET)}
    ),
    "rt_detr": Recipe(
        "RTDetrForObjectDetection",
        {
            **DETR,
            "encoder_layers": 1,
            "encoder_hidden_dim": 64,
            "encoder_in_channels": [32, 48, 64],
            "decoder_in_channels": [64, 64, 64],
            "backbone_config": ("RTDetrResNetConfig", BACKBONE),
        },
    ),
    "rt_detr_v2": Recipe(
        "RTDetrV2ForObjectDetection",
        {
            **DETR,
            "encoder_layers": 1,
            "encoder_hidden_dim": 64,
            "encoder_in_channels": [32, 48, 64],
            "decoder_in_channels": [64, 64, 64],
            "backbone_config": ("RTDetrResNetConfig", BACKBONE),
        },
    ),
}


def names() -> Iterator[tuple[str, str]]:
    """(architecture, recipe)"""
    for name in RECIPES:
        yield name.partition("-")[0], name


def build(name: str) -> Subject:
    recipe = RECIPES[name]
    model_class = getattr(transformers, recipe.model)
    options = {option: _plain(value) for option, value in recipe.options.items()}
    return Subject(model_class(model_class.config_class(**options)), list(_candidates(recipe)))


def _plain(value: Any) -> Any:
    """A (class name, options) pair as the configuration that it stands for."""
    return getattr(transformers, value[0])(**value[1]) if isinstance(value, tuple) else value


def _candidates(recipe: Recipe) -> Iterator[Inputs]:
    if recipe.size is not None:
        yield (images(1, 3, recipe.size, recipe.size),)
        return
    yield (images(2, 3, 96, 128),)
    yield (images(1, 3, 160, 192),)
    yield (images(1, 3, 224, 224),)
