"""
No law passes vacuously: subjects whose every answer is plainly wrong are rejected by each law about numbers.

One subject's logits are zeros and its updates do nothing; the other's logits and updated parameters are NaN. The laws
that hold for both, rightly, are listed below; all others must reject both. A listed law is not run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn, optim

import lenet
from lenet import subject
from properties.laws.networks import all_gradients, expect_error, skip_unless_reference
from properties.record import LAWS
from properties.stack import Stack, dtype_name
from properties.testing import run

SAME_ANSWERS = "compares answers of the subject with each other, which are equally wrong"
STRUCTURE = "looks at shapes, dtypes, graphs, memory, errors or side effects, and at no value that is computed"
PYTORCH = "judges PyTorch's own operators, modules or optimizers, which these subjects do not replace"
BEFORE_LAST_LAYER = "looks at outputs of conv1 and conv2, which these subjects compute correctly"

HOLDS = {
    SAME_ANSWERS: """
        second_backward_adds_exactly backward_twice_through_retained_graph_doubles_gradients
        zero_grad_discards_earlier_gradients no_gradient_accumulates_under_no_grad backward_through_freed_graph_raises
        network_is_unchanged_after_an_error power_of_two_scaling_between_layers_preserves_logits
        without_biases_logits_scale_with_images gradient_of_sum_is_sum_of_gradients
        backward_after_parameter_change_raises_or_uses_saved_values gradient_of_scaled_loss_is_scaled
        autocast_ends_with_its_region nested_autocast_regions_are_independent
        nonfinite_pixel_does_not_affect_other_images nonfinite_pixel_does_not_affect_gradients_of_other_images
        loaded_optimizer_state_continues_bit_for_bit optimizer_step_reads_no_uninitialized_memory
        same_call_gives_same_bits train_and_eval_modes_agree networks_share_no_state copies_are_bit_identical
        copies_share_no_memory training_resumes_bit_for_bit weight_changes_take_effect_immediately
        image_changes_take_effect_immediately no_grad_pass_does_not_affect_later_autocast_pass
        weight_changes_take_effect_within_autocast autocast_cache_ends_with_its_region
        uninitialized_memory_is_not_read logits_depend_only_on_their_own_image functional_call_matches_the_network
        manual_and_optimizer_updates_agree_at_powers_of_two manual_and_optimizer_training_agree_at_powers_of_two
        gradients_match_finite_differences hessian_vector_products_match_finite_differences
        forward_over_reverse_matches_reverse_over_reverse averaged_model_computes_with_its_averages
        checkpoint_recomputes_with_the_same_random_numbers checkpointing_changes_no_bit
        clipping_after_unscale_equals_clipping_without_scale loaded_grad_scaler_continues_identically
        reused_memory_of_images_is_read_again training_leaves_a_mapped_file_unchanged
        weights_in_other_or_reused_memory_take_effect full_backward_hooks_receive_the_gradients
        gradients_that_backward_hooks_return_are_used values_that_forward_hooks_return_are_used
    """,
    STRUCTURE: """
        gradients_accumulate_in_place wrong_channel_count_raises wrong_dimension_count_raises
        unbatched_image_raises_or_gives_its_logits wrong_image_size_raises_or_gives_one_row_per_image
        wrong_dtype_raises wrong_device_raises non_tensor_input_raises backward_from_nonscalar_raises
        graph_reaches_exactly_the_parameters logits_have_shape_dtype_and_device batch_of_n_images_gives_n_rows_of_logits
        one_image_does_not_raise empty_batch_does_not_raise
        intermediate_shapes_match_the_tutorial parameters_match_the_tutorial repr_matches_the_tutorial
        initialization_is_uniform_and_independent update_leaves_gradients_unchanged
        optimizer_step_leaves_gradients_unchanged optimizer_step_writes_only_its_parameter
        forward_leaves_images_and_parameters_unchanged forward_leaves_global_state_unchanged
        training_step_changes_only_the_network no_graph_is_recorded_under_no_grad_or_inference_mode
        state_dict_shares_memory_with_parameters hooks_run_in_order_until_removed
        manual_update_writes_only_its_parameter training_leaks_no_memory
    """,
    PYTORCH: """
        class_index_out_of_range_raises mismatched_target_count_raises missing_state_dict_entry_raises_by_name
        unexpected_state_dict_entry_raises_by_name misshaped_state_dict_entry_raises_by_name
        non_strict_load_reports_skipped_entries mean_loss_of_repeated_rows_equals_loss_of_one_row
        grad_scaler_grows_and_backs_off_as_documented grad_scaler_rejects_calls_out_of_order
        grad_scaler_rejects_float16_gradients assigned_parameter_is_registered to_dtype_converts_every_parameter
        to_device_moves_every_parameter parameters_do_not_overlap_in_memory relu_is_exact_for_nonfinite_values
        max_pooling_is_exact_for_nonfinite_values optimizer_leaves_given_group_dicts_unchanged
        groups_do_not_share_a_learning_rate_tensor invalid_optimizer_settings_raise
        backward_after_step_raises_or_uses_saved_values
        averaged_model_follows_its_formula clip_grad_norm_scales_by_the_total_norm clip_grad_value_clips_each_element
        clipping_without_gradients_does_nothing cosine_annealing_follows_its_formula
        exponential_average_of_integers_is_exact lambda_lr_follows_its_formula load_runs_no_code_by_default
        loaded_samples_are_unchanged loaded_tensors_are_bit_identical_at_any_location
        loader_yields_every_sample_once_an_epoch mse_loss_without_mean_is_exact_for_integers
        nonfinite_total_norm_is_returned_or_raises one_cycle_reaches_its_documented_rates
        resumed_schedule_continues_exactly saved_average_continues_bit_for_bit seed_determines_the_order_of_each_epoch
        step_lr_follows_its_formula workers_draw_different_random_numbers
    """,
    BEFORE_LAST_LAYER: """
        pooled_feature_maps_equal_next_layer_inputs nan_spreads_exactly_over_its_receptive_field
        shifting_images_shifts_feature_maps
    """,
}
"""By reason: laws that rightly hold for both subjects, in every dtype."""

HOLDS_FOR_ZEROS = {
    "load_with_assign_uses_the_given_tensors": SAME_ANSWERS,
    "scaled_micro_batches_step_like_unscaled_ones": SAME_ANSWERS,
    "input_gradient_is_zero_for_other_images": "the gradient is zero",
    "cross_entropy_options_follow_their_formulas": "the loss is that of the subject's own logits",
    "every_training_update_matches_the_formula": "the gradients are zeros, so that the parameters must not change",
}
HOLDS_FOR_NANS = {"nan_pixel_makes_all_logits_of_its_image_nan": "the logits are NaN"}

JUDGED_IN = {
    "autocast_computes_the_loss_in_float32": ["float32"],
    "compiled_step_uses_the_current_learning_rate": ["float32"],
    "grad_scaler_skips_each_optimizer_separately": ["float32", "float64", "bfloat16"],
    "grad_scaler_uses_the_scale_that_update_is_given": ["float32", "float64", "bfloat16"],
    "autocast_meets_its_claimed_precision": ["float32"],
    "autocast_preserves_representable_values": ["float32"],
    "training_on_digits_matches_the_oracle": ["float32", "float64"],
    "grad_scaler_step_equals_unscaled_step": ["float32", "float64", "bfloat16"],
    "grad_scaler_skips_step_with_nonfinite_gradients": ["float32", "float64", "bfloat16"],
    "scaled_micro_batches_step_like_unscaled_ones": ["float32", "float64", "bfloat16"],
}
"""The dtypes of laws that are skipped in the others."""


@torch.no_grad()
def fill_with_nan(parameters: Iterable[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.fill_(float("nan"))


class Zeros:
    """The logits are zeros, with a graph; updates and training steps do nothing."""

    class Net(lenet.Net):
        def forward(self, images: Tensor) -> Tensor:
            logits = super().forward(images)
            return logits.masked_fill(torch.ones_like(logits, dtype=torch.bool), 0.0)

    class SGD(optim.SGD):
        def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
            pass

    replaces: ClassVar = {"torch.optim.SGD": SGD}

    @staticmethod
    def sgd_update(parameters: Iterable[nn.Parameter], lr: float) -> None:
        pass

    @staticmethod
    def train_step(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
        return images.new_zeros(())


class Nans:
    """The logits are NaN, and so are the parameters after an update or a training step."""

    class Net(lenet.Net):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) * float("nan")

    class SGD(optim.SGD):
        def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
            for group in self.param_groups:
                fill_with_nan(group["params"])

    replaces: ClassVar = {"torch.optim.SGD": SGD}

    @staticmethod
    def sgd_update(parameters: Iterable[nn.Parameter], lr: float) -> None:
        fill_with_nan(parameters)

    @staticmethod
    def train_step(net: nn.Module, images: Tensor, targets: Tensor, lr: float) -> Tensor:
        fill_with_nan(net.parameters())
        return images.new_full((), float("nan"))


class WrongFromSeventeenth(lenet.Net):
    """From the 17th image on, the logits are those of the first image."""

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return torch.cat([logits[:16], logits[:1].expand(max(0, len(images) - 16), -1)])


LAWS_ABOUT_LARGE_BATCHES = """
    logits_agree_with_the_oracle mse_loss_agrees_with_the_oracle cross_entropy_agrees_with_the_oracle
    gradients_agree_with_the_oracle cross_entropy_gradients_agree_with_the_oracle
    input_gradients_agree_with_the_oracle custom_autograd_function_joins_the_graph
    training_step_agrees_with_the_oracle permuting_images_permutes_logits repeated_images_repeat_logits
    autocast_meets_its_claimed_precision
"""
"""Laws with explicit examples of 17 images or more."""

SUBJECTS = {"Zeros": HOLDS_FOR_ZEROS, "Nans": HOLDS_FOR_NANS}
LISTED = {law for laws in HOLDS.values() for law in laws.split()}
ALL_LAWS = {
    line.partition("(")[0].removeprefix("def test_")
    for path in LAWS.glob("test_*.py")
    for line in path.read_text().splitlines()
    if line.startswith("def test_")
}


def test_listed_laws_exist_and_are_listed_once() -> None:
    assert LISTED | HOLDS_FOR_ZEROS.keys() | HOLDS_FOR_NANS.keys() | JUDGED_IN.keys() <= ALL_LAWS
    assert sum(len(laws.split()) for laws in HOLDS.values()) == len(LISTED)
    assert not LISTED & (HOLDS_FOR_ZEROS.keys() | HOLDS_FOR_NANS.keys())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=dtype_name)
def test_wrong_answers_violate_every_law_about_numbers(tmp_path: Path, dtype: torch.dtype) -> None:
    deselected = [f"test_{law}" for law in sorted(LISTED)]
    deselected += [f"test_{law} and {name}" for name, laws in SUBJECTS.items() for law in laws]
    options = ["-k", f"not ({' or '.join(deselected)})", "--hypothesis-profile=mutants", "--tb=no"]
    options += ["--device=cpu", "--dtype", dtype_name(dtype), "--record", str(tmp_path)]

    run("properties/laws", *options, *(f"--subject={__name__}:{name}" for name in SUBJECTS))

    entries = json.loads((tmp_path / "laws.json").read_text())["laws"]
    judged = {law for law in ALL_LAWS - LISTED if dtype_name(dtype) in JUDGED_IN.get(law, [dtype_name(dtype)])}
    for name, holds in SUBJECTS.items():
        own = [entry for entry in entries if entry["subject"].endswith(f":{name}")]
        violated = {entry["law"].removeprefix("test_") for entry in own if entry["outcome"] == "failed"}
        assert judged - holds.keys() - violated == set(), f"{name} in {dtype_name(dtype)}"
        crashes = {entry["law"]: entry["message"] for entry in own if entry["failure_kind"] not in ("", "assertion")}
        assert not crashes, f"{name} in {dtype_name(dtype)}"


@pytest.mark.slow
def test_fault_from_the_17th_image_on_violates_every_law_about_large_batches(tmp_path: Path) -> None:
    laws = LAWS_ABOUT_LARGE_BATCHES.split()
    options = ["-k", " or ".join(f"test_{law}" for law in laws), "--hypothesis-profile=mutants", "--tb=no"]
    options += ["--device=cpu", "--dtype=float32", "--record", str(tmp_path)]

    run("properties/laws", *options, f"--subject={__name__}:WrongFromSeventeenth")

    entries = json.loads((tmp_path / "laws.json").read_text())["laws"]
    held = [entry["id"] for entry in entries if entry["outcome"] != "failed"]
    assert {entry["law"] for entry in entries} == {f"test_{law}" for law in laws}
    assert not held


def stack_of(spec: str) -> Stack:
    return Stack(subject.load(spec), torch.device("cpu"), torch.float32)


def test_skip_for_a_reason_of_the_subject_is_a_failure_of_the_reference() -> None:
    with pytest.raises(pytest.skip.Exception, match="cannot be pickled"):
        skip_unless_reference(stack_of(f"{__name__}:Zeros"), "cannot be pickled")
    with pytest.raises(AssertionError, match="the reference network must not be skipped: cannot be pickled"):
        skip_unless_reference(stack_of("lenet"), "cannot be pickled")


def test_missing_gradient_is_named() -> None:
    net = lenet.Net()
    net.fc1.weight.requires_grad_(False)
    net(torch.zeros(1, 1, 32, 32)).sum().backward()

    with pytest.raises(AssertionError, match=r"^fc1\.weight: `\.grad` is None"):
        all_gradients(net)


def raise_value_error() -> None:
    raise ValueError("negative")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (raise_value_error, AssertionError, r"a step raised ValueError\('negative'\), expected .* 'too large'"),
        (lambda: None, pytest.fail.Exception, "DID NOT RAISE ValueError: a step"),
    ],
)
def test_expected_error_that_is_not_raised_is_named(
    call: Callable[[], None], error: type[BaseException], message: str
) -> None:
    with pytest.raises(error, match=message), expect_error(ValueError, "too large", "a step"):
        call()


def test_expected_error_is_accepted() -> None:
    with expect_error(ValueError, "neg", "a step"):
        raise_value_error()
