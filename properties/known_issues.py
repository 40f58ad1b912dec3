"""
The registry of known issues: bugs of PyTorch and of engines that the laws have found, and the stacks they affect.

`known_issues_page.py` writes `properties/KNOWN_ISSUES.md`, which says what a known issue is and lists all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from lenet.exact_sgd import SGD
from lenet.training import SGD_FORMS
from properties.case import Case
from properties.comparison import Mask, MismatchError
from properties.entries import NOT_JUDGED
from properties.stack import Stack, dtype_name
from properties.strategies import Placed, Vectors
from properties.symptoms import (
    Raised,
    Symptom,
    Wrong,
    are_first_settings,
    as_mask,
    beside_the_field,
    finite,
    first_too_small,
    in_full_blocks,
    in_its_image,
    infinite,
    infinite_with_momentum,
    is_new_lr,
    nan,
    not_infinite,
    one_unit_too_small,
    row_before,
    subnormal,
    subnormal_before,
    too_small,
    unchanged,
    unchanged_blocks,
    with_momentum_added,
    zero,
)

UNREPORTED = "no report found"
MANY = Case(images="normal", batch=17)
INDUCTOR = ("compiled", "max-autotune")


@dataclass(frozen=True)
class ExpectedFailure:
    """A law that an issue makes fail, and on which examples."""

    law: str
    counterexample: Mapping[str, Any]  # arguments, other than the stack, on which the law fails
    applies_to: Callable[[Mapping[str, Any]], bool]  # whether the law may fail on an example with these arguments
    symptoms: tuple[Symptom, ...]  # how it fails there
    at_random: bool = False  # whether the law draws such an example or not, so that it has no counterexample
    own: bool = False  # whether the user has listed it, as a known deviation

    def explained(self, mismatch: MismatchError, arguments: Mapping[str, Any]) -> Mask:
        """Return which elements of a tensor it may make wrong in an example with these arguments."""
        masks = [s.explains(mismatch, arguments) for s in self.symptoms if isinstance(s, Wrong)]
        return as_mask(np.any([np.zeros_like(mismatch.wrong), *masks], axis=0))

    def explains(self, error: BaseException, arguments: Mapping[str, Any]) -> bool:
        """Whether it explains an error that ends an example with these arguments, unless that was not judged."""
        if str(error).startswith(NOT_JUDGED):
            return False
        return any(symptom.explains(error, arguments) for symptom in self.symptoms if not isinstance(symptom, Wrong))


@dataclass(frozen=True)
class StackFilter:
    """The stacks that an issue affects."""

    description: str
    matches: Callable[[Stack], bool]


@dataclass(frozen=True)
class KnownIssue:
    """A bug of PyTorch or of an engine."""

    title: str
    reference: str  # owner/repository#number, or UNREPORTED
    affects: StackFilter
    expected_failures: tuple[ExpectedFailure, ...]
    since: tuple[int, int] = (2, 11)  # the oldest PyTorch version tested with it; most earlier ones were not tested
    fixed_in: tuple[int, int] | None = None  # the first PyTorch version without it; None if no release is known
    engines: tuple[str, ...] = ()  # the engines that have it; if empty, PyTorch's operators have it
    intermittent: tuple[torch.dtype, ...] = ()  # dtypes in which it depends on the machine or on earlier calls
    stops_device: bool = False  # whether the GPU does not work any more after it: then its examples are left out

    @property
    def stacks(self) -> str:
        """The engines that have it, if it is theirs, and the stacks that it affects, in words."""
        return "; ".join([", ".join(self.engines)] * bool(self.engines) + [self.affects.description])

    def must_occur(self, stack: Stack) -> bool:
        """
        Whether the issue must occur on an affected stack: the reference, eagerly or by one of the issue's engines.

        Other subjects and engines may replace the faulty operator.
        """
        own = stack.engine.name in self.engines if stack.engine else True
        return stack.subject.spec == "lenet" and own

    def advice(self, failure: ExpectedFailure) -> str:
        """Return the message of the error that it no longer occurs."""
        major, minor = torch_version()
        return (
            f"This is not a fault of your stack: a known issue no longer occurs: {self.title} ({self.reference}). "
            f"The law holds on its counterexample {dict(failure.counterexample)}. If PyTorch {major}.{minor} fixes it, "
            f"set fixed_in=({major}, {minor}) in properties/known_issues.py; if only this processor lacks it, narrow "
            "`affects`."
        )


def torch_version() -> tuple[int, int]:
    """Return the major and minor version of PyTorch."""
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


def expected_issues(
    law: str, stack: Stack, arguments: Mapping[str, Any], own: Sequence[KnownIssue] = ()
) -> list[tuple[KnownIssue, ExpectedFailure]]:
    """
    Return the issues, and the user's own ones, expected to make a law fail on a stack.

    `arguments` are the law's pytest parameters.
    """
    version = torch_version()
    return [
        (issue, failure)
        for issue in (*KNOWN_ISSUES, *own)
        if issue.since <= version
        and (issue.fixed_in is None or version < issue.fixed_in)
        and issue.affects.matches(stack)
        and (not issue.engines or (stack.engine is not None and stack.engine.name in issue.engines))
        for failure in issue.expected_failures
        if failure.law == law
        and all(arguments[name] == value for name, value in failure.counterexample.items() if name in arguments)
    ]


def in_dtypes(*dtypes: torch.dtype) -> StackFilter:
    """Return the stacks of these dtypes, on every device."""
    return StackFilter(_names(dtypes), lambda stack: stack.dtype in dtypes)


def on_cpu(*dtypes: torch.dtype) -> StackFilter:
    """Return the stacks of these dtypes on the CPU; of all dtypes if none is given."""
    description = f"{_names(dtypes)} on the CPU" if dtypes else "CPU"
    return StackFilter(description, lambda stack: stack.device.type == "cpu" and (not dtypes or stack.dtype in dtypes))


def on_cuda(*dtypes: torch.dtype) -> StackFilter:
    """Return the stacks of these dtypes on NVIDIA GPUs; of all dtypes if none is given."""
    description = f"{_names(dtypes)} on CUDA" if dtypes else "CUDA"
    return StackFilter(description, lambda stack: stack.device.type == "cuda" and (not dtypes or stack.dtype in dtypes))


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return " and ".join(map(dtype_name, dtypes)) if len(dtypes) < 3 else ", ".join(map(dtype_name, dtypes))


def _has_avx512_bf16() -> bool:
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return bool(supported())


def _has_amx() -> bool:
    supported = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return bool(supported())


ANY_STACK = StackFilter("all", lambda stack: True)
"""For bugs of Python code, which is the same on every device and in every dtype."""

CPU_WITH_BFLOAT16_INSTRUCTIONS = StackFilter(
    "bfloat16 on a CPU with AVX512_BF16",
    lambda stack: stack.device.type == "cpu" and stack.precision.name == "bfloat16" and _has_avx512_bf16(),
)
"""For bugs of oneDNN's kernels for processors that multiply bfloat16 natively."""

CPU_WITH_AMX = StackFilter(
    "bfloat16 on a CPU with Intel AMX",
    lambda stack: stack.device.type == "cpu" and stack.precision.name == "bfloat16" and _has_amx(),
)
"""For bugs of oneDNN's kernels for processors with bfloat16 matrix units."""

CPU_WITHOUT_BFLOAT16_KERNELS = StackFilter(
    "bfloat16 on a CPU without AVX512",
    lambda stack: (
        stack.device.type == "cpu"
        and "bfloat16" in (dtype_name(stack.dtype), stack.precision.name)
        and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    ),
)
"""Where PyTorch does not use oneDNN's kernels for bfloat16, which autocast may choose."""

CPU_WITHOUT_FLOAT16_INSTRUCTIONS = StackFilter(
    "float16 on a CPU without native float16",
    lambda stack: on_cpu(torch.float16).matches(stack) and not torch.ops.mkldnn._is_mkldnn_fp16_supported(),
)

CUDA_FLOAT32 = StackFilter(
    "float32 on CUDA", lambda stack: stack.device.type == "cuda" and stack.precision.name == "float32"
)
"""Without TF32, and without autocast to 16 bits."""

CPU_WITH_NNPACK = StackFilter(
    "float32 on a CPU with NNPACK",
    lambda stack: on_cpu(torch.float32).matches(stack) and torch.backends.nnpack.is_available(),
)


def expected_failure(
    law: str, applies_to: Callable[..., bool], *symptoms: Symptom, **counterexample: Any
) -> ExpectedFailure:
    """
    Return the expected failure of a law, named without `test_`, on a counterexample given as the law's arguments.

    `applies_to` is called with the law's arguments as keywords.
    """
    return ExpectedFailure(f"test_{law}", counterexample, lambda arguments: applies_to(**arguments), symptoms)


# Which examples an issue applies to, by the arguments of the laws.


def always(**arguments: Any) -> bool:
    """Every example."""
    return True


def fused(form: str, **others: Any) -> bool:
    """The fused form of optim.SGD."""
    return form == "fused"


def fused_block(form: str, vectors: Vectors | None = None, **others: Any) -> bool:
    """Fused, and a parameter has at least one SIMD block: 8 elements with the narrowest registers (128 bits)."""
    return form == "fused" and (vectors is None or max(vectors.sizes) >= 8)


def fused_views(form: str, placed: Placed, **others: Any) -> bool:
    """Fused, and at some step parameter, gradient and buffer are not all contiguous in memory."""
    contiguous = all(len(set(layouts) - {"contiguous", "offset"}) == 0 for layouts in placed.layouts)
    return form == "fused" and not contiguous


def fused_momentum(form: str, sgd: SGD, **others: Any) -> bool:
    """Fused, with momentum."""
    return form == "fused" and sgd.momentum > 0


def one_window(layout: str, shape: tuple[int, ...], **others: Any) -> bool:
    """One channel and one window, in a layout that PyTorch takes for channels_last."""
    return layout == "channels_last" and shape[1:] == (1, 2, 2)


def foreach_nesterov(form: str, sgd: SGD, **others: Any) -> bool:
    """Foreach with Nesterov momentum, and no setting for which it copies the gradients first."""
    return form == "foreach" and sgd.nesterov and not sgd.weight_decay and not sgd.maximize


def maximum_of_empty(norm_type: float, empty: bool, **others: Any) -> bool:
    """The norm of infinite order, with an empty gradient."""
    return norm_type == float("inf") and empty


def interval_changed(new_interval: int | None, **others: Any) -> bool:
    """The growth interval of a GradScaler is changed between steps."""
    return new_interval is not None


def default_kernels(kernels: str, **others: Any) -> bool:
    """PyTorch's default kernels, oneDNN's."""
    return kernels == "default"


def twelve(case: Case, times: int, **others: Any) -> bool:
    """A batch of twelve."""
    return case.batch * times == 12


def nnpack(kernels: str, case: Case, **others: Any) -> bool:
    """Without oneDNN and from 16 images on: PyTorch then uses NNPACK."""
    return kernels == "no oneDNN" and case.batch >= 16


def amx_rows(kernels: str, case: Case, image: int, **others: Any) -> bool:
    """Default kernels, from 17 images on, and the pixel is in any image but the first: the one before is affected."""
    return kernels == "default" and case.batch >= 17 and image % case.batch > 0


def sixteen(case: Case, **others: Any) -> bool:
    """From 16 images on: NNPACK computes."""
    return case.batch >= 16


def sixteen_in_batch(batch: int, **others: Any) -> bool:
    """A batch of 16 images or more: NNPACK computes."""
    return batch >= 16


def at_border(before: int, after: int, row: int, column: int, **others: Any) -> bool:
    """The pixel is in the first `before` or last `after` rows or columns: no pooling window contains it alone."""
    return min(row, column) < before or max(row, column) >= 32 - after


def xla_pooling(case: Case, **others: Any) -> bool:
    """Where XLA hands max pooling to YNNPACK, from 4,096 elements on; the second pooling from three images on."""
    return at_border(*((3, 3) if case.batch >= 3 else (1, 1)), **others)


# Counterexamples that several laws share.


def flipped(law: str, tensors: str, **arguments: Any) -> ExpectedFailure:
    """Return the expected failure of a law on a network with ReLU inputs of exactly zero."""
    case = Case(weights="integers", images="one-hot", batch=17, seed=1)
    return expected_failure(law, sixteen, Wrong(tensors, finite), case=case, **arguments)


def nan_at(column: int, batch: int = 2, kernels: str = "default") -> dict[str, Any]:
    """Return arguments with NaN in the first row of the first image."""
    return {"kernels": kernels, "case": Case(batch=batch), "image": 0, "row": 0, "column": column}


def subnormals(
    applies_to: Callable[..., bool], symptom: Symptom, batch: int = 2, kernels: str = "default"
) -> ExpectedFailure:
    """Return the expected failure on the smallest subnormal number."""
    drawn = {"kernels": kernels, "case": Case(weights="one-hot", batch=batch), "multiple": 1}
    return expected_failure("subnormal_numbers_are_preserved", applies_to, symptom, **drawn)


def largest(applies_to: Callable[..., bool], batch: int, kernels: str = "default") -> ExpectedFailure:
    """Return the expected failure on the largest number."""
    case, law = Case(weights="one-hot", batch=batch), "largest_number_is_preserved_and_next_overflows"
    return expected_failure(law, applies_to, Wrong("logits .*"), kernels=kernels, case=case, exponent=1)


PLAIN, MOMENTUM, NESTEROV = SGD(lr=0.5), SGD(lr=0.5, momentum=0.5), SGD(lr=0.5, momentum=0.5, nesterov=True)
ONE, TWO, BLOCK, BLOCKS = (Vectors(sizes=sizes) for sizes in ((1,), (1, 1), (16,), (16, 16)))
ACROSS_CONVOLUTION = Placed(layouts=(("contiguous", "channels_last", "contiguous"),))
ACROSS = Placed("conv1.bias", layouts=(("contiguous", "strided", "contiguous"),))
INSIDE = Placed("conv1.bias", layouts=(("strided", "contiguous", "contiguous"),))

CONVOLUTIONS = r"conv[12]\.(weight|bias)"
CONVOLUTION_GRADIENTS = rf"{CONVOLUTIONS}\.grad.*"
BEFORE_FC3 = r"(conv[12]|fc[12])\.(weight|bias)"
CONVOLUTIONS_WRONG = Wrong(CONVOLUTION_GRADIENTS)
INEXACT_OR_FLIPPED = Wrong(r"logits|images\.grad|.*\.weight\.grad|conv[12]\.bias\.grad", finite)
"""Features are inexact, so that another pixel of a pooling window may be the largest."""

FEATURES_INEXACT = Wrong(r"(conv[12]\.(weight|bias)|fc[123]\.weight)\.grad.*")
SATURATED = Wrong(CONVOLUTION_GRADIENTS, too_small)
FLUSHED = Wrong("logits", zero)
NAN_LOST = Wrong("the image's logits", finite)
PARAMETER_NAN = Wrong(r"(parameter|momentum buffer) \d+", nan)
OTHER_ROWS = Wrong("(the other images' logits|the gradient of the other images)", row_before)

BLOCKS_UNCHANGED = (Wrong(r"parameter \d+", unchanged_blocks), Wrong(r"momentum buffer \d+", in_full_blocks))
FULL_BLOCKS_BY_LAW: dict[str, tuple[Symptom, ...]] = {
    "manual_and_optimizer_training_agree_at_powers_of_two": (
        Wrong(r"\S+ after step 1", in_full_blocks),
        Wrong(r"\S+ after step [2-9]", finite),  # the gradients there are those of other parameters
    ),
    "every_training_update_matches_the_formula": (Wrong(r"\S+ after optim\.SGD, fused", in_full_blocks),),
    "optimizer_step_is_correct_in_any_memory_layout": (
        Wrong("parameter 0", unchanged),
        Wrong("parameter 0", infinite_with_momentum),  # of another position, if layouts differ
        Wrong("momentum buffer 0"),
    ),
    "loaded_optimizer_state_is_independent": (
        Wrong(r"momentum buffer \d+ of the other optimizer", in_full_blocks),  # shared, by another known issue
    ),
}
"""The symptoms of full SIMD blocks where they are not BLOCKS_UNCHANGED, by law."""

FULL_BLOCKS: dict[str, dict[str, Any]] = {
    "optimizer_update_matches_the_formula": {"vectors": BLOCK, "lr": 0.5},
    "manual_and_optimizer_updates_agree_at_powers_of_two": {"vectors": BLOCK, "lr": 0.5},
    "manual_and_optimizer_training_agree_at_powers_of_two": {"case": Case(batch=3), "lr": 1.0},
    "every_training_update_matches_the_formula": {"case": Case(batch=3), "lr": 1.0},
    "parameter_without_gradient_is_skipped": {"vectors": BLOCKS, "lr": 0.5, "skipped": {0}},
    "update_of_slices_writes_only_them": {"vectors": BLOCK, "lr": 0.5},
    "nonfinite_gradient_reaches_its_own_element_only": {
        "vectors": BLOCK,
        "lr": 0.5,
        "position": 0,
        "value": float("inf"),
    },
    "sgd_steps_match_the_formula": {"vectors": BLOCK, "sgd": PLAIN, "lr_as_tensor": False},
    "many_and_large_parameters_step_by_the_formula": {"vectors": Vectors(sizes=(16, 1)), "sgd": PLAIN},
    "parameter_groups_use_their_own_settings": {"vectors": BLOCKS, "first": PLAIN, "second": PLAIN},
    "learning_rate_change_takes_effect_at_next_step": {"vectors": BLOCK, "sgd": MOMENTUM, "lr": 0.5},
    "late_first_gradient_is_treated_as_first_step": {"vectors": BLOCKS, "sgd": PLAIN},
    "missing_gradient_differs_from_zero_gradient": {"vectors": BLOCKS, "sgd": MOMENTUM},
    "optimizer_step_is_correct_in_any_memory_layout": {"placed": Placed(), "sgd": PLAIN},
    "maximize_equals_minimize_with_negated_gradients": {"vectors": BLOCK, "sgd": PLAIN},
    "loaded_optimizer_state_is_independent": {"vectors": BLOCK, "sgd": MOMENTUM},
    "grad_scaler_step_equals_unscaled_step": {"vectors": BLOCK, "sgd": PLAIN, "unscale": False},
    "grad_scaler_skips_step_with_nonfinite_gradients": {
        "vectors": BLOCK,
        "sgd": PLAIN,
        "position": 0,
        "nonfinite": float("inf"),
    },
}
"""Arguments with a full SIMD block, by law."""

OVERWRITTEN = Raised(RuntimeError, "overwritten by a subsequent run")
OVERWRITTEN_BY_CUDA_GRAPHS: dict[str, dict[str, Any]] = {
    "micro_batch_gradients_accumulate_to_batch_gradients": {"case": Case(batch=2), "size": 1},
    "gradients_accumulate_in_place": {"case": Case(), "seed": 0},
    "second_backward_adds_exactly": {"first": Case(), "second": Case(seed=1)},
    "no_gradient_accumulates_under_no_grad": {"case": Case()},
    "gradient_of_sum_is_sum_of_gradients": {"first": Case(batch=3), "second": Case(batch=3, seed=1)},
    "forward_leaves_images_and_parameters_unchanged": {"case": Case()},
    "networks_share_no_state": {"case": Case(batch=2), "lr": 0.01},
    "train_and_eval_modes_agree": {"case": Case()},
    "permuting_channels_and_units_preserves_logits": {"case": Case(), "seed": 0},
    "nonfinite_pixel_does_not_affect_gradients_of_other_images": nan_at(0) | {"value": float("nan")},
    "nonfinite_upstream_gradient_does_not_affect_other_images": {
        "kernels": "default",
        "case": Case(batch=2),
        "image": 0,
        "logit": 0,
        "value": float("nan"),
    },
}
"""Arguments with two forward or backward passes, whose results a CUDA graph keeps in the same memory, by law."""


BLOCKS_IN_ANY_ORDER = ExpectedFailure(
    "test_training_in_any_order_gives_the_expected_state",
    {},
    lambda arguments: True,
    (Wrong(r"\S+ after optim\.SGD, fused", in_full_blocks),),
    at_random=True,
)
"""The state machine draws its steps, among them fused ones."""

KNOWN_ISSUES = (
    KnownIssue(
        title="torch.compile may read max pooling's gradient before it is written: the layer before gets no gradient",
        reference="pytorch/pytorch#185509",
        fixed_in=(2, 14),
        engines=INDUCTOR,
        affects=on_cpu(torch.float32, torch.bfloat16),
        # In float32 an AMD EPYC showed it in every run, an Intel Xeon by max-autotune in all laws, by compiled in one.
        intermittent=(torch.float32, torch.bfloat16),
        expected_failures=(
            *(
                expected_failure("large_batch_counts_are_exact", always, CONVOLUTIONS_WRONG, batch=batch)
                for batch in (600, 4096)
            ),
            expected_failure("gradients_agree_with_the_oracle", always, CONVOLUTIONS_WRONG, case=MANY),
            *(
                expected_failure(
                    "cross_entropy_gradients_agree_with_the_oracle",
                    always,
                    CONVOLUTIONS_WRONG,
                    targets=targets,
                    case=MANY,
                )
                for targets in ("indices", "weights")
            ),
            expected_failure("input_gradients_agree_with_the_oracle", always, Wrong(r"images\.grad"), case=MANY),
            expected_failure(
                "batches_of_any_size_are_exact",
                always,
                CONVOLUTIONS_WRONG,
                Wrong(r"images\.grad"),
                batch=65,
                share=0.25,
                seed=0,
            ),
            expected_failure(
                "results_are_exact_with_any_number_of_threads", always, CONVOLUTIONS_WRONG, Wrong(r"images\.grad")
            ),
            expected_failure("training_step_is_correct_with_any_number_of_threads", always, Wrong(CONVOLUTIONS)),
            *(
                expected_failure(
                    "backward_is_correct_for_any_upstream_gradient_layout",
                    always,
                    CONVOLUTIONS_WRONG,
                    upstream=upstream,
                    case=MANY,
                )
                for upstream in ("expanded", "strided", "transposed")
            ),
            expected_failure(
                "relu_gradient_at_zero_is_zero",
                always,
                CONVOLUTIONS_WRONG,
                Raised(AssertionError, r"^conv2\.bias\.grad"),
                case=Case("constant", batch=17),
                layer="conv1",
            ),
            expected_failure(
                "micro_batch_gradients_accumulate_to_batch_gradients", always, CONVOLUTIONS_WRONG, case=MANY, size=17
            ),
            expected_failure("repeated_images_repeat_logits", always, CONVOLUTIONS_WRONG, case=MANY, times=2),
            expected_failure(
                "permuting_channels_and_units_preserves_logits", always, CONVOLUTIONS_WRONG, case=MANY, seed=0
            ),
            expected_failure("permuting_images_permutes_logits", always, CONVOLUTIONS_WRONG, case=MANY, seed=0),
            expected_failure(
                "training_step_agrees_with_the_oracle",
                always,
                Wrong(CONVOLUTIONS),
                case=MANY,
                earlier=Case(),
                lr=0.5,
            ),
            expected_failure(
                "training_on_digits_matches_the_oracle",
                always,
                Raised(AssertionError, "compared predictions differ from the oracle's|loss does not decrease"),
            ),
        ),
    ),
    KnownIssue(
        title=(
            "optim.SGD(fused=True) leaves full SIMD blocks of 16-bit parameters unchanged "
            "and corrupts their momentum buffers"
        ),
        reference="pytorch/pytorch#191763",
        affects=on_cpu(torch.bfloat16, torch.float16),
        since=(2, 5),
        fixed_in=(2, 15),
        expected_failures=(
            *(
                expected_failure(
                    law, fused_block, *FULL_BLOCKS_BY_LAW.get(law, BLOCKS_UNCHANGED), form="fused", **drawn
                )
                for law, drawn in FULL_BLOCKS.items()
            ),
            BLOCKS_IN_ANY_ORDER,
        ),
    ),
    KnownIssue(
        title="optim.SGD(fused=True) pairs elements by memory position if parameter and gradient layouts differ",
        reference=UNREPORTED,
        affects=on_cpu(),
        since=(2, 5),
        expected_failures=(
            expected_failure(
                "optimizer_step_is_correct_in_any_memory_layout",
                fused_views,
                Wrong("(parameter|momentum buffer) 0", not_infinite),  # NaN lies between the elements of a view
                form="fused",
                placed=ACROSS,
                sgd=PLAIN,
            ),
        ),
    ),
    KnownIssue(
        title="optim.SGD(fused=True) on CUDA raises an internal error if parameter and gradient layouts differ",
        reference=UNREPORTED,
        affects=on_cuda(),
        expected_failures=tuple(
            expected_failure(
                law,
                fused_views,
                Raised(RuntimeError, "check_fast_path_restrictions"),
                form="fused",
                placed=ACROSS_CONVOLUTION,
                sgd=PLAIN,
            )
            for law in ("optimizer_step_is_correct_in_any_memory_layout", "optimizer_step_writes_only_its_parameter")
        ),
    ),
    KnownIssue(
        title="optim.SGD(fused=True) writes to memory outside a parameter that is a strided view",
        reference=UNREPORTED,
        affects=on_cpu(),
        since=(2, 5),
        expected_failures=(
            expected_failure(
                "optimizer_step_writes_only_its_parameter",
                fused_views,
                Raised(AssertionError, "the step wrote an element outside of the view"),
                form="fused",
                placed=INSIDE,
                sgd=PLAIN,
            ),
        ),
    ),
    KnownIssue(
        title="optim.SGD(fused=True) updates parameters unnoticed by autograd: older graphs silently use new values",
        reference=UNREPORTED,
        affects=ANY_STACK,
        since=(2, 5),
        expected_failures=(
            expected_failure(
                "backward_after_step_raises_or_uses_saved_values",
                fused,
                Wrong("the gradient that uses the saved parameter .*", finite),
                form="fused",
                vectors=ONE,
                sgd=PLAIN,
            ),
        ),
    ),
    KnownIssue(
        title="optim.SGD(fused=True) with momentum raises if a parameter gets its first gradient after the first step",
        reference=UNREPORTED,
        affects=ANY_STACK,
        since=(2, 5),
        expected_failures=(
            expected_failure(
                "late_first_gradient_is_treated_as_first_step",
                fused_momentum,
                Raised(TypeError, "NoneType"),
                form="fused",
                vectors=TWO,
                sgd=MOMENTUM,
            ),
        ),
    ),
    KnownIssue(
        title="optim.SGD(foreach=True, nesterov=True) adds the momentum to the gradients in place",
        reference=UNREPORTED,
        affects=ANY_STACK,
        since=(2, 5),
        expected_failures=(
            expected_failure(
                "optimizer_step_leaves_gradients_unchanged",
                foreach_nesterov,
                Wrong(r"gradient \d+ after step \d+", with_momentum_added),
                form="foreach",
                vectors=ONE,
                sgd=NESTEROV,
            ),
        ),
    ),
    KnownIssue(
        title="Optimizer.load_state_dict does not copy the state's tensors: both optimizers then share them",
        reference="pytorch/pytorch#196083",
        affects=ANY_STACK,
        since=(2, 5),
        expected_failures=tuple(
            expected_failure(
                "loaded_optimizer_state_is_independent",
                always,
                Wrong(r"momentum buffer \d+ of the other optimizer", finite),
                form=form,
                vectors=ONE,
                sgd=MOMENTUM,
            )
            for form in SGD_FORMS
        ),
    ),
    KnownIssue(
        title="An optimizer writes its default settings into the parameter group dictionaries passed to it",
        reference="pytorch/pytorch#51794",
        affects=ANY_STACK,
        since=(2, 5),
        expected_failures=(
            expected_failure(
                "optimizer_leaves_given_group_dicts_unchanged",
                always,
                Raised(AssertionError, r"^the second optimizer has the settings (.*), expected", are_first_settings),
                sgd=PLAIN,
                other=MOMENTUM,
            ),
        ),
    ),
    KnownIssue(
        title="All parameter groups of an optimizer share the tensor passed as the learning rate",
        reference=UNREPORTED,
        affects=ANY_STACK,
        since=(2, 5),
        expected_failures=(
            expected_failure(
                "groups_do_not_share_a_learning_rate_tensor",
                always,
                Raised(AssertionError, r"^the learning rate of the other group is (\S+), expected", is_new_lr),
                lr=0.5,
                new_lr=1.0,
            ),
        ),
    ),
    KnownIssue(
        title="optim.SGD(fused=True) keeps an uninitialized momentum buffer if a GradScaler skips its first step",
        reference="LibreYOLO/libreyolo#771",
        affects=in_dtypes(torch.float32, torch.float64, torch.bfloat16),
        since=(2, 5),
        expected_failures=(
            expected_failure(
                "grad_scaler_skips_step_with_nonfinite_gradients",
                fused_momentum,
                PARAMETER_NAN,
                form="fused",
                vectors=ONE,
                sgd=MOMENTUM,
                position=0,
                nonfinite=float("inf"),
            ),
        ),
    ),
    KnownIssue(
        title="max_pool2d of channels_last float64 maps of one channel and one window reads a misaligned address",
        reference=UNREPORTED,
        affects=on_cuda(torch.float64),
        stops_device=True,
        expected_failures=tuple(
            expected_failure(
                "max_pooling_is_exact_for_nonfinite_values",
                one_window,
                Raised(RuntimeError, "misaligned address"),
                form=form,
                shape=(1, 1, 2, 2),
                share=0.0,
                layout="channels_last",
                seed=0,
            )
            for form in ("F.max_pool2d", "with indices", "nn.MaxPool2d")
        ),
    ),
    KnownIssue(
        title="With cudnn.deterministic, conv1's weight gradient has 1e-3 relative error: Winograd with 9x9 tiles",
        reference=UNREPORTED,
        affects=CUDA_FLOAT32,
        intermittent=(torch.float32,),  # another GPU or cuDNN selects other algorithms
        expected_failures=(
            expected_failure(
                "repeated_images_repeat_logits",
                twelve,
                Wrong(r"conv1\.weight\.grad", finite),
                case=Case(images="normal", batch=3),
                times=4,
            ),
        ),
    ),
    KnownIssue(
        title="A GradScaler never increases its scale again after its growth interval is set below its count of steps",
        reference=UNREPORTED,
        affects=in_dtypes(torch.float32, torch.float64, torch.bfloat16),
        since=(2, 5),
        expected_failures=(
            expected_failure(
                "grad_scaler_grows_and_backs_off_as_documented",
                interval_changed,
                Raised(AssertionError, r"^the scale after step \d+ is (\S+), not (\S+)", first_too_small),
                steps=[True, True],
                interval=2,
                new_interval=1,
                growth=2.0,
                backoff=0.5,
            ),
        ),
    ),
    KnownIssue(
        title="GradScaler.step accepts a closure passed by position and then steps with scaled gradients",
        reference=UNREPORTED,
        affects=in_dtypes(torch.float32, torch.float64, torch.bfloat16),
        since=(2, 5),
        expected_failures=(
            expected_failure(
                "grad_scaler_rejects_calls_out_of_order",
                always,
                Raised(pytest.fail.Exception, "DID NOT RAISE"),
                misuse="closure by position",
            ),
        ),
    ),
    KnownIssue(
        title="A network that has run in an autocast region raises in a nested region of another dtype",
        reference=UNREPORTED,
        affects=in_dtypes(torch.float32),
        since=(2, 5),
        expected_failures=(
            expected_failure(
                "nested_autocast_regions_are_independent",
                always,
                Raised(RuntimeError, "type"),
                case=Case(),
                outer_bfloat16=True,
            ),
        ),
    ),
    KnownIssue(
        title='Forward-over-reverse differentiation of mse_loss raises "ZeroTensors are immutable"',
        reference="pytorch/pytorch#123996",
        affects=in_dtypes(torch.float64),
        since=(2, 5),
        expected_failures=(
            expected_failure(
                "forward_over_reverse_matches_reverse_over_reverse",
                always,
                Raised(RuntimeError, "ZeroTensors are immutable"),
                by_hand=False,
                case=Case(),
                name="conv1.weight",
                seed=0,
            ),
        ),
    ),
    KnownIssue(
        title="clip_grad_value_ raises an internal error if no parameter has a gradient; clip_grad_norm_ returns 0",
        reference="xingyizhou/UniDet#24",
        affects=ANY_STACK,
        since=(2, 5),
        expected_failures=tuple(
            expected_failure(
                "clipping_without_gradients_does_nothing",
                always,
                Raised(RuntimeError, "nested_tensorlist"),
                function="clip_grad_value_",
                foreach=foreach,
            )
            for foreach in (False, True)
        ),
    ),
    KnownIssue(
        title="clip_grad_norm_ of infinite order raises if one gradient is empty; the other orders skip it",
        reference="meta-pytorch/torchrec#3891",
        affects=ANY_STACK,
        since=(2, 5),
        expected_failures=tuple(
            expected_failure(
                "clip_grad_norm_scales_by_the_total_norm",
                maximum_of_empty,
                Raised(RuntimeError, "norm on an empty tensor"),
                foreach=foreach,
                norms=(3, 4),
                exponent=0,
                norm_type=float("inf"),
                fraction=0.5,
                missing=0,
                empty=True,
                seed=0,
            )
            for foreach in (False, True)
        ),
    ),
    KnownIssue(
        title="conv2d's weight gradient accumulates over the batch in float16 and saturates at 2,048 equal terms",
        reference=UNREPORTED,
        affects=CPU_WITHOUT_FLOAT16_INSTRUCTIONS,
        since=(2, 5),
        expected_failures=(expected_failure("large_batch_counts_are_exact", always, SATURATED, batch=4096),),
    ),
    KnownIssue(
        title="Without oneDNN, conv2d's weight gradient accumulates over the batch in bfloat16 and saturates at 512",
        reference=UNREPORTED,
        engines=("no-onednn",),
        affects=on_cpu(torch.bfloat16),
        since=(2, 5),
        expected_failures=tuple(
            expected_failure("large_batch_counts_are_exact", always, SATURATED, batch=batch) for batch in (600, 4096)
        ),
    ),
    KnownIssue(
        title="On a CPU without AVX512, conv2d's weight gradient accumulates in bfloat16 and saturates at 512",
        reference=UNREPORTED,
        affects=CPU_WITHOUT_BFLOAT16_KERNELS,
        since=(2, 5),
        expected_failures=tuple(
            expected_failure("large_batch_counts_are_exact", always, SATURATED, batch=batch) for batch in (600, 4096)
        ),
    ),
    KnownIssue(
        title="Without oneDNN, conv2d's weight gradient accumulates over the batch in float16 and saturates at 2,048",
        reference=UNREPORTED,
        engines=("no-onednn",),
        affects=on_cpu(torch.float16),
        since=(2, 5),
        expected_failures=(expected_failure("large_batch_counts_are_exact", always, SATURATED, batch=4096),),
    ),
    KnownIssue(
        title="conv2d of one channel in bfloat16 spreads NaN and infinity one column beyond their receptive field",
        reference=UNREPORTED,
        affects=CPU_WITH_BFLOAT16_INSTRUCTIONS,
        expected_failures=(
            expected_failure(
                "nan_spreads_exactly_over_its_receptive_field",
                default_kernels,
                Wrong("the NaN mask of .*", beside_the_field),
                **nan_at(31),
            ),
        ),
    ),
    KnownIssue(
        title="Linear layers in bfloat16 on Intel AMX leak NaN and infinity into the row before, from 17 rows on",
        reference="uxlfoundation/oneDNN#5717",
        affects=CPU_WITH_AMX,
        expected_failures=tuple(
            expected_failure(law, amx_rows, OTHER_ROWS, **nan_at(0, batch=17) | {"image": 1, "value": float("nan")})
            for law in (
                "nonfinite_pixel_does_not_affect_other_images",
                "nonfinite_pixel_does_not_affect_gradients_of_other_images",
            )
        ),
    ),
    KnownIssue(
        title="Convolutions and linear layers in bfloat16 flush subnormals to zero, some at certain batch sizes only",
        reference=UNREPORTED,
        affects=CPU_WITH_BFLOAT16_INSTRUCTIONS,
        expected_failures=(subnormals(default_kernels, FLUSHED),),
    ),
    KnownIssue(
        title="Without oneDNN, convolutions of 16 or more images (by NNPACK) spread NaN and lose subnormal numbers",
        reference="pytorch/pytorch#157237",
        affects=CPU_WITH_NNPACK,
        since=(2, 5),
        expected_failures=(
            expected_failure(
                "nan_spreads_exactly_over_its_receptive_field",
                nnpack,
                Wrong("the NaN mask of .*", in_its_image),
                **nan_at(0, batch=17, kernels="no oneDNN"),
            ),
            subnormals(nnpack, Wrong("logits", subnormal), batch=17, kernels="no oneDNN"),
            largest(nnpack, batch=17, kernels="no oneDNN"),
        ),
    ),
    KnownIssue(
        title="Without oneDNN, convolutions of 16 or more images use a Fourier transform, which is never exact",
        reference="pytorch/pytorch#157237",
        engines=("no-onednn",),
        affects=CPU_WITH_NNPACK,
        since=(2, 5),
        expected_failures=(
            *(
                expected_failure("large_batch_counts_are_exact", always, FEATURES_INEXACT, batch=batch)
                for batch in (600, 4096)
            ),
            expected_failure(
                "batches_of_any_size_are_exact", sixteen_in_batch, INEXACT_OR_FLIPPED, batch=65, share=0.25, seed=0
            ),
            expected_failure("results_are_exact_with_any_number_of_threads", always, INEXACT_OR_FLIPPED),
            subnormals(sixteen, Wrong("logits", subnormal), batch=17),
            largest(sixteen, batch=17),
            expected_failure(
                "overflowing_loss_is_infinite",
                sixteen,
                Wrong("the loss of .*"),
                case=Case(weights="one-hot", batch=17),
                exponent=1,
            ),
            flipped("gradients_agree_with_the_oracle", rf"{BEFORE_FC3}\.grad"),
            flipped("cross_entropy_gradients_agree_with_the_oracle", rf"{BEFORE_FC3}\.grad", targets="indices"),
            flipped("cross_entropy_gradients_agree_with_the_oracle", rf"{BEFORE_FC3}\.grad", targets="weights"),
            flipped("input_gradients_agree_with_the_oracle", r"images\.grad"),
            flipped("training_step_agrees_with_the_oracle", BEFORE_FC3, earlier=Case(), lr=1.0),
        ),
    ),
    KnownIssue(
        title="torch.compile(mode='reduce-overhead') overwrites gradients and saved tensors of earlier calls",
        reference="pytorch/pytorch#169545",
        engines=("reduce-overhead", "max-autotune"),
        affects=on_cuda(),
        stops_device=True,  # saved indices of max pooling that were overwritten are out of bounds
        expected_failures=(
            *(expected_failure(law, always, OVERWRITTEN, **drawn) for law, drawn in OVERWRITTEN_BY_CUDA_GRAPHS.items()),
            *(
                expected_failure(
                    "weight_changes_take_effect_immediately",
                    always,
                    OVERWRITTEN,
                    method=method,
                    old=Case(batch=2),
                    case=Case(batch=2, seed=1),
                    grad=True,
                )
                for method in ("in place", ".data", "load_state_dict", "assign=True", "new Parameters")
            ),
        ),
    ),
    KnownIssue(
        title="ONNX Runtime's MaxPool propagates NaN only from the last position of a window",
        reference=UNREPORTED,
        engines=("onnxruntime",),
        affects=on_cpu(),
        expected_failures=(
            expected_failure(
                "nan_pixel_makes_all_logits_of_its_image_nan", partial(at_border, 3, 0), NAN_LOST, **nan_at(0)
            ),
        ),
    ),
    KnownIssue(
        title="OpenVINO's ReLU turns NaN into 0, and its MaxPool (#35935) turns it into the lowest number",
        reference="openvinotoolkit/openvino#35649",
        engines=("openvino", "openvino-f32"),
        affects=on_cpu(),
        expected_failures=(
            expected_failure("nan_pixel_makes_all_logits_of_its_image_nan", always, NAN_LOST, **nan_at(0)),
        ),
    ),
    KnownIssue(
        title="Without AVX512, OpenVINO rounds to bfloat16 toward zero wherever the last bit that is left is 0",
        reference="openvinotoolkit/openvino#37104",
        engines=("openvino", "openvino-f32"),
        affects=CPU_WITHOUT_BFLOAT16_KERNELS,
        expected_failures=(
            expected_failure(
                "long_sums_are_exact", always, Wrong("logits", one_unit_too_small), layer="fc1", share=1.0, seed=0
            ),
            expected_failure(
                "errors_have_no_bias_toward_zero",
                always,
                Raised(AssertionError, r"^the mean error of logits is \S+ budgets toward zero"),
                seed=0,
            ),
        ),
    ),
    KnownIssue(
        title="XLA's maxima of 4,096 or more elements, computed by YNNPACK on the CPU, lose NaN",
        reference=UNREPORTED,
        engines=("jax",),
        affects=on_cpu(torch.float32, torch.float64),
        expected_failures=(
            expected_failure("nan_pixel_makes_all_logits_of_its_image_nan", xla_pooling, NAN_LOST, **nan_at(0)),
        ),
    ),
    KnownIssue(
        title="XLA treats subnormal numbers as zero on the CPU",
        reference="openxla/xla#22858",
        engines=("jax",),
        affects=on_cpu(torch.float32, torch.float64, torch.bfloat16),
        expected_failures=(subnormals(always, FLUSHED),),
    ),
    KnownIssue(
        title="XLA's gradients that are subnormal numbers are zero on the CPU",
        reference="openxla/xla#22858",
        engines=("jax",),
        affects=on_cpu(torch.float32),
        expected_failures=(
            expected_failure(
                "cross_entropy_gradients_agree_with_the_oracle",
                always,
                Wrong(r"\S+\.grad", subnormal_before),
                targets="weights",
                case=Case(weights="integers", images="digits", targets="one-hot", seed=2),
            ),
        ),
    ),
    KnownIssue(
        title="cross_entropy in float16 is infinite if the sum of the losses overflows before it is divided",
        reference="pytorch/pytorch#85791",
        affects=on_cpu(torch.float16),
        since=(2, 5),
        expected_failures=(
            *(
                expected_failure(
                    "mean_loss_of_repeated_rows_equals_loss_of_one_row",
                    always,
                    Wrong("loss", infinite),
                    loss=loss,
                    count=count,
                )
                for loss, least in {"cross-entropy": 32_768, "weighted": 16_384, "smoothed": 4096}.items()
                for count in (4096, 16_384, 32_768)
                if count >= least
            ),
        ),
    ),
)
