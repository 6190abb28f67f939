"""The table of variants."""

from dataclasses import FrozenInstanceError, replace

import pytest

from fastvit_zoo import ZooError, create_model, list_models
from fastvit_zoo.config import VARIANTS, config_of


def test_the_seven_variants_in_order_of_size() -> None:
    sizes = ["t8", "t12", "s12", "sa12", "sa24", "sa36", "ma36"]
    assert list_models() == [f"fastvit_{size}" for size in sizes]


def test_the_name_in_the_table_is_the_name_in_the_config() -> None:
    assert all(config_of(name).name == name for name in list_models())


def test_the_number_in_the_name_is_the_number_of_blocks() -> None:
    """But for T8, which has 10."""
    for name, config in VARIANTS.items():
        number = int("".join(filter(str.isdigit, name)))
        assert sum(config.depths) == (10 if name == "fastvit_t8" else number)


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        config_of("fastvit_t8").mlp_ratio = 4  # pyright: ignore[reportAttributeAccessIssue]


def test_attention_needs_whole_heads() -> None:
    with pytest.raises(ZooError, match=r"dims=.*needs a multiple of 32"):
        replace(config_of("fastvit_sa12"), dims=(64, 128, 256, 500))


def test_an_unknown_variant_names_the_nearest_and_all() -> None:
    with pytest.raises(ZooError) as caught:
        create_model("fastvit_sa13")
    message = str(caught.value)
    assert "no variant 'fastvit_sa13'; did you mean fastvit_sa36 or fastvit_sa12 or fastvit_s12? The" in message
    assert all(name in message for name in list_models())


def test_a_name_like_no_other_gets_no_hint() -> None:
    with pytest.raises(ZooError, match=r"no variant 'resnet'\. The variants are fastvit_t8, "):
        create_model("resnet")
