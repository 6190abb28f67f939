"""Ultralytics YOLO, built from the YAML files of its package."""

import importlib
import os
import tempfile
from collections.abc import Iterator
from typing import Any

from tests.sweep.subject import Subject, images

os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.gettempdir())  # it writes its settings when it is imported
os.environ.setdefault("YOLO_OFFLINE", "true")
tasks: Any = importlib.import_module("ultralytics.nn.tasks")

MODELS = {
    "yolov5n": "DetectionModel",
    "yolov6n": "DetectionModel",
    "yolov8n": "DetectionModel",
    "yolov8n-cls": "ClassificationModel",
    "yolov8n-ghost": "DetectionModel",
    "yolov8n-obb": "OBBModel",
    "yolov8n-pose": "PoseModel",
    "yolov8n-seg": "SegmentationModel",
    "yolov9t": "DetectionModel",
    "yolov9c": "DetectionModel",
    "yolov10n": "DetectionModel",
    "yolov10s": "DetectionModel",
    "yolo11n": "DetectionModel",
    "yolo11n-seg": "SegmentationModel",
    "yolo12n": "DetectionModel",
    "yolo26n": "DetectionModel",
    "rtdetr-resnet50": "RTDETRDetectionModel",
    "rtdetr-l": "RTDETRDetectionModel",
}


def names() -> Iterator[tuple[str, str]]:
    """(kind of model, model)"""
    for name, kind in MODELS.items():
        yield kind, name


def build(name: str) -> Subject:
    model = getattr(tasks, MODELS[name])(f"{name}.yaml", verbose=False)
    return Subject(model, [(images(2, 3, 96, 128),), (images(1, 3, 160, 192),)])
