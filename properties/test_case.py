"""Cases: every recipe builds its arrays, prints as one line that rebuilds it, and keeps its values in any layout."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lenet import subject
from lenet.oracle import PRECISIONS, SHAPES
from properties.case import IMAGE_LAYOUTS, IMAGES, TARGETS, WEIGHTS, Case, parse
from properties.stack import Stack, float64
from properties.strategies import cases

FLOAT32 = PRECISIONS["float32"]


@given(case=cases())
def test_case_prints_as_one_line_that_rebuilds_it(case: Case) -> None:
    assert "\n" not in repr(case)
    assert parse(repr(case)) == case


@pytest.mark.parametrize("weights", WEIGHTS)
def test_every_recipe_for_weights_builds_ten_parameters(weights: str) -> None:
    parameters = Case(weights=weights).parameters(FLOAT32)

    assert {name: value.shape for name, value in parameters.items()} == SHAPES
    assert all(np.isfinite(value).all() for value in parameters.values())
    assert any(value.any() for value in parameters.values()) == (weights != "zero")


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("batch", [0, 1, 5])
def test_every_recipe_for_images_builds_a_batch(images: str, batch: int) -> None:
    pixels = Case(images=images, batch=batch).pixels(FLOAT32)

    assert pixels.shape == (batch, 1, 32, 32)
    assert np.isfinite(pixels).all()
    assert not batch or bool(pixels.any()) == (images != "zero")


@pytest.mark.parametrize("targets", TARGETS)
def test_every_recipe_for_targets_builds_ten_per_image(targets: str) -> None:
    assert Case(targets=targets, batch=3).target_values().shape == (3, 10)


@pytest.mark.parametrize("layout", IMAGE_LAYOUTS)
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_layout_changes_strides_but_not_values(layout: str, batch: int) -> None:
    stack = Stack(subject.load("lenet"), torch.device("cpu"), torch.float64)
    case = Case(layout=layout, batch=batch)

    images = stack.images(case)

    assert np.array_equal(float64(images), case.pixels(stack.precision))
    if batch == 3:
        rows_and_columns = {"strided": (65, 2), "transposed": (3 * 1 * 32, 3 * 1)}  # strides, in elements
        batch_strides = {"transposed": 1, "strided": 32 * 65, "expanded": 0}
        batch_stride, _, *others = images.stride()  # the stride of the only channel does not matter
        assert batch_stride == batch_strides.get(layout, 1024)
        assert layout == "transposed" or tuple(others) == rows_and_columns.get(layout, (32, 1))
        assert (images.storage_offset() > 0) == (layout in ("strided", "offset"))


def test_equal_cases_build_equal_arrays_and_other_seeds_others() -> None:
    assert np.array_equal(Case(images="normal", seed=3).pixels(FLOAT32), Case(images="normal", seed=3).pixels(FLOAT32))
    assert not np.array_equal(
        Case(images="normal", seed=3).pixels(FLOAT32), Case(images="normal", seed=4).pixels(FLOAT32)
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Case(", "not of the form"),
        ("Other()", "not of the form"),
        ("Case('default')", "not of the form"),
        ("Case(batch=__import__('os'))", "not of the form"),
        ("Case(color='red')", "Case has no field 'color'; its fields are weights, images"),
        ("Case(weights='none')", "weights='none': not one of default, "),
        ("Case(batch=-1)", "batch=-1: not an integer"),
        ("Case(seed='x')", "seed='x': not an integer"),
        ("", "'' is not of the form"),
        ("(" * 10_000, "...' is not of the form"),
        (f"Case(batch={'-' * 100_000}1)", "...' is not of the form"),
        ("1" + "+1" * 20_000, "...' is not of the form"),
        (f"Case(seed={'1' * 5_000})", "...' is not of the form"),
        ("Case(seed={[]: 1})", "not of the form"),
        ("Case(**{'seed': 1})", "Case has no field 'None'"),
    ],
)
def test_text_that_is_not_a_case_raises_with_a_one_line_message(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"^.+$") as caught:
        parse(text)

    assert message in str(caught.value)


@given(
    position=st.integers(0, len(repr(Case()))),
    removed=st.integers(0, 20),
    inserted=st.text(max_size=5) | st.text("()=,'-1"),
)
def test_changed_text_of_a_case_is_a_case_or_a_one_line_error(position: int, removed: int, inserted: str) -> None:
    text = repr(Case())

    result = parsed_or_error(text[:position] + inserted + text[position + removed :])

    assert len(str(result).splitlines()) == 1
    assert isinstance(result, ValueError) or parse(repr(result)) == result


def parsed_or_error(text: str) -> Case | ValueError:
    try:
        return parse(text)
    except ValueError as error:
        return error
