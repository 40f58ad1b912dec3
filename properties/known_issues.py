"""
Upstream bugs that the laws have found, by the stacks that show them: expected there, strictly, and cited.

A law that sees a known issue is judged like any other, but for the examples that the issue covers. On them it may
fail; on the issue's own counterexample it must, or the run fails and says that the issue is gone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch

from lenet.training import SGD_FORMS
from lenet.update import SGD
from properties.case import Case
from properties.stack import Stack
from properties.strategies import Placed, Vectors

UNREPORTED = "no report found"
MANY = Case(images="normal", batch=17)
INDUCTOR = ("compiled", "max-autotune")


@dataclass(frozen=True)
class Sighting:
    """A law that sees an issue."""

    law: str
    counterexample: Mapping[str, Any]  # the law's arguments; on which it fails
    covers: Callable[[Mapping[str, Any]], bool]  # of a law's arguments: whether it may fail on them
    raises: type[BaseException] = AssertionError


@dataclass(frozen=True)
class KnownIssue:
    """A bug of PyTorch's, or of an engine's, that some stacks show."""

    title: str
    reference: str
    affects: Callable[[Stack], bool]
    sightings: tuple[Sighting, ...]
    since: tuple[int, int] = (2, 13)  # the first version that we saw it in; earlier ones were mostly not tried
    fixed: tuple[int, int] | None = None  # the first version that no longer has it
    engines: tuple[str, ...] = ()  # whose it is; one of PyTorch's operators may show under any engine, but need not
    unsteady: tuple[torch.dtype, ...] = ()  # dtypes in which it comes and goes with what was compiled before

    def must_show(self, stack: Stack) -> bool:
        """Whether a stack that it affects has to show it: the reference itself, or one of the engines whose it is."""
        own = stack.engine.name in self.engines if stack.engine else True
        return stack.subject.spec == "lenet" and own


def expected(law: str, stack: Stack, arguments: Mapping[str, Any]) -> list[tuple[KnownIssue, Sighting]]:
    """The issues that a law, called with these arguments (those that pytest gives), is to see on a stack."""
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    return [
        (issue, sighting)
        for issue in KNOWN_ISSUES
        if issue.since <= version
        and (issue.fixed is None or version < issue.fixed)
        and issue.affects(stack)
        and (not issue.engines or (stack.engine is not None and stack.engine.name in issue.engines))
        for sighting in issue.sightings
        if sighting.law == law
        and all(arguments[name] == value for name, value in sighting.counterexample.items() if name in arguments)
    ]


def anywhere(stack: Stack) -> bool:
    """Python code, the same on every device and in every dtype."""
    return True


def in_dtypes(*dtypes: torch.dtype) -> Callable[[Stack], bool]:
    """In these dtypes, on every device."""
    return lambda stack: stack.dtype in dtypes


def on_cpu(*dtypes: torch.dtype) -> Callable[[Stack], bool]:
    """On the CPU in these dtypes, in all where none is named."""
    return lambda stack: stack.device.type == "cpu" and (not dtypes or stack.dtype in dtypes)


def bfloat16_instructions(stack: Stack) -> bool:
    """In bfloat16 on a processor that multiplies it by itself (AVX512_BF16), for which oneDNN has its own kernels."""
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return stack.device.type == "cpu" and stack.precision.name == "bfloat16" and bool(supported())


def sighting(
    law: str, covers: Callable[..., bool], raises: type[BaseException] = AssertionError, **drawn: Any
) -> Sighting:
    """A sighting by the law of this name; `covers` takes the law's arguments by name."""
    return Sighting(f"test_{law}", drawn, lambda arguments: covers(**arguments), raises)


def fused(form: str, **others: Any) -> bool:
    """In the fused form."""
    return form == "fused"


def fused_block(form: str, drawn: Vectors | None = None, **others: Any) -> bool:
    """Fused, with a parameter of at least a SIMD block: 8 elements on the narrowest processor of the report."""
    return form == "fused" and (drawn is None or max(drawn.sizes) >= 8)


def fused_views(form: str, case: Placed, **others: Any) -> bool:
    """Fused, with a parameter, gradient or buffer that does not lie in memory as the others do, at some step."""
    alike = all(len(set(layouts) - {"contiguous", "offset"}) == 0 for layouts in case.layouts)
    return form == "fused" and not alike


def fused_momentum(form: str, chosen: SGD, **others: Any) -> bool:
    """Fused, with a momentum buffer."""
    return form == "fused" and chosen.momentum > 0


def foreach_nesterov(form: str, chosen: SGD, **others: Any) -> bool:
    """Where the foreach form has made no copy of the gradients before it adds the momentum."""
    return form == "foreach" and chosen.nesterov and not chosen.weight_decay and not chosen.maximize


def interval_changed(changed: int | None, **others: Any) -> bool:
    """With another growth interval set on the way."""
    return changed is not None


def default_kernels(kernels: str, **others: Any) -> bool:
    """With oneDNN."""
    return kernels == "default"


def nnpack(kernels: str, case: Case, **others: Any) -> bool:
    """Where PyTorch takes NNPACK: without oneDNN, from 16 images on."""
    return kernels == "no oneDNN" and case.batch >= 16


def sixteen(case: Case, **others: Any) -> bool:
    """From 16 images on."""
    return case.batch >= 16


def sixteen_with_kinks(case: Case, **others: Any) -> bool:
    """From 16 images on, of weights that are integers: what is exactly at a ReLU's kink or a tie may leave it."""
    return sixteen(case) and case.weights in ("integers", "pairs", "one-hot")


def at_kinks(law: str, **drawn: Any) -> Sighting:
    """A sighting by the law of this name, of a network of which some units are exactly at a kink."""
    case = Case(weights="integers", images="one-hot", batch=17, seed=1)
    return sighting(law, sixteen_with_kinks, case=case, **drawn)


def at_the_rim(before: int, after: int, row: int, column: int, **others: Any) -> bool:
    """At a pixel among the first or last rows or columns, as many as said: no pooled window has read it alone."""
    return min(row, column) < before or max(row, column) >= 32 - after


def xla_pool(case: Case, **others: Any) -> bool:
    """Where XLA hands pooling to YNNPACK, from 4,096 numbers on: the second time from three images on."""
    return at_the_rim(*((3, 3) if case.batch >= 3 else (1, 1)), **others)


def always(**arguments: Any) -> bool:
    """On every example."""
    return True


def nan_at(column: int, batch: int = 2, kernels: str = "default") -> dict[str, Any]:
    """NaN in the first row of the first image."""
    return {"kernels": kernels, "case": Case(batch=batch), "image": 0, "row": 0, "column": column}


def subnormals(covers: Callable[..., bool], batch: int = 2, kernels: str = "default") -> Sighting:
    """By the law of subnormal numbers, of the least of them."""
    case = Case(weights="one-hot", batch=batch)
    return sighting("subnormal_numbers_are_preserved", covers, kernels=kernels, case=case, multiple=1)


def largest(covers: Callable[..., bool], batch: int, kernels: str = "default") -> Sighting:
    """By the law of the largest number."""
    case, law = Case(weights="one-hot", batch=batch), "largest_number_is_preserved_and_next_overflows"
    return sighting(law, covers, kernels=kernels, case=case, exponent=1)


PLAIN, MOMENTUM, NESTEROV = SGD(lr=0.5), SGD(lr=0.5, momentum=0.5), SGD(lr=0.5, momentum=0.5, nesterov=True)
ONE, TWO, BLOCK, BLOCKS = (Vectors(sizes=sizes) for sizes in ((1,), (1, 1), (16,), (16, 16)))
ACROSS = Placed("conv1.bias", layouts=(("contiguous", "strided", "contiguous"),))
INSIDE = Placed("conv1.bias", layouts=(("strided", "contiguous", "contiguous"),))

FULL_BLOCKS: dict[str, dict[str, Any]] = {
    "optimizer_update_matches_the_formula": {"drawn": BLOCK, "lr": 0.5},
    "manual_and_optimizer_updates_agree_at_powers_of_two": {"drawn": BLOCK, "lr": 0.5},
    "manual_and_optimizer_training_agree_at_powers_of_two": {"case": Case(batch=3), "lr": 1.0},
    "every_training_update_matches_the_formula": {"case": Case(batch=3), "lr": 1.0},
    "parameter_without_gradient_is_skipped": {"drawn": BLOCKS, "lr": 0.5, "which": {0}},
    "sgd_steps_match_the_formula": {"drawn": BLOCK, "chosen": PLAIN, "tensor": False},
    "parameter_groups_use_their_own_settings": {"drawn": BLOCKS, "first": PLAIN, "second": PLAIN},
    "learning_rate_change_takes_effect_at_next_step": {"drawn": BLOCK, "chosen": MOMENTUM, "lr": 0.5},
    "late_first_gradient_takes_a_first_step": {"drawn": BLOCKS, "chosen": PLAIN},
    "missing_gradient_differs_from_zero_gradient": {"drawn": BLOCKS, "chosen": MOMENTUM},
    "optimizer_step_is_right_in_any_memory_layout": {"case": Placed(), "chosen": PLAIN},
}
"""What laws are to draw to see a full SIMD block, by law."""

KNOWN_ISSUES = (
    KnownIssue(
        title="torch.compile may read pooling's gradient before it is written: the filters before it get none",
        reference="pytorch/pytorch#185509",
        fixed=(2, 14),
        engines=INDUCTOR,
        affects=on_cpu(torch.float32, torch.bfloat16),
        unsteady=(torch.bfloat16,),
        sightings=(
            sighting("large_batch_counts_are_exact", always, batch=600),
            sighting("large_batch_counts_are_exact", always, batch=4096),
            sighting("gradients_agree_with_the_oracle", always, case=MANY),
            *(
                sighting("cross_entropy_gradients_agree_with_the_oracle", always, targets=targets, case=MANY)
                for targets in ("indices", "probabilities")
            ),
            sighting("input_gradients_agree_with_the_oracle", always, case=MANY),
            *(
                sighting("upstream_gradient_may_have_any_memory_layout", always, upstream=upstream, case=MANY)
                for upstream in ("expanded", "strided", "transposed")
            ),
            sighting("relu_gradient_at_zero_is_zero", always, case=Case("constant", batch=17), layer="conv1"),
            sighting("micro_batch_gradients_accumulate_to_batch_gradients", always, case=MANY, size=17),
            sighting("repeated_images_repeat_logits", always, case=MANY, times=2),
            sighting("permuting_channels_and_units_preserves_logits", always, case=MANY, seed=0),
            sighting("permuting_images_permutes_logits", always, case=MANY, order=random.Random(0)),
            sighting("training_step_agrees_with_the_oracle", always, case=MANY, earlier=Case(), lr=0.5),
            sighting("training_on_digits_matches_the_oracle", always),
        ),
    ),
    KnownIssue(
        title="optim.SGD(fused=True) leaves full SIMD blocks of 16-bit parameters as they were; spoils their momentum",
        reference="pytorch/pytorch#191763",
        affects=on_cpu(torch.bfloat16, torch.float16),
        since=(2, 5),
        fixed=(2, 15),
        sightings=tuple(sighting(law, fused_block, form="fused", **drawn) for law, drawn in FULL_BLOCKS.items()),
    ),
    KnownIssue(
        title="optim.SGD(fused=True) pairs elements by their place in memory where layouts differ",
        reference=UNREPORTED,
        affects=on_cpu(),
        sightings=(
            sighting(
                "optimizer_step_is_right_in_any_memory_layout", fused_views, form="fused", case=ACROSS, chosen=PLAIN
            ),
        ),
    ),
    KnownIssue(
        title="optim.SGD(fused=True) writes beside a parameter that is a strided view",
        reference=UNREPORTED,
        affects=on_cpu(),
        sightings=(
            sighting("optimizer_step_writes_only_its_parameter", fused_views, form="fused", case=INSIDE, chosen=PLAIN),
        ),
    ),
    KnownIssue(
        title="optim.SGD(fused=True) changes parameters unseen by autograd: older graphs silently use the new ones",
        reference=UNREPORTED,
        affects=on_cpu(),
        sightings=(
            sighting("backward_after_step_raises_or_uses_saved_values", fused, form="fused", drawn=ONE, chosen=PLAIN),
        ),
    ),
    KnownIssue(
        title="optim.SGD(fused=True) with momentum raises where a parameter's first gradient comes late",
        reference=UNREPORTED,
        affects=anywhere,
        sightings=(
            sighting(
                "late_first_gradient_takes_a_first_step",
                fused_momentum,
                TypeError,
                form="fused",
                drawn=TWO,
                chosen=MOMENTUM,
            ),
        ),
    ),
    KnownIssue(
        title="optim.SGD(foreach=True, nesterov=True) adds the momentum to the gradients themselves",
        reference=UNREPORTED,
        affects=anywhere,
        sightings=(
            sighting(
                "optimizer_step_leaves_gradients_unchanged",
                foreach_nesterov,
                form="foreach",
                drawn=ONE,
                chosen=NESTEROV,
            ),
        ),
    ),
    KnownIssue(
        title="an optimizer's load_state_dict shares its buffers with the optimizer that they came from",
        reference="pytorch/pytorch#196083",
        affects=anywhere,
        sightings=tuple(
            sighting("loaded_optimizer_state_is_independent", always, form=form, drawn=ONE, chosen=MOMENTUM)
            for form in SGD_FORMS
        ),
    ),
    KnownIssue(
        title="an optimizer writes its defaults into the group dictionaries that it is given",
        reference="pytorch/pytorch#51794",
        affects=anywhere,
        sightings=(sighting("optimizer_leaves_given_group_dicts_unchanged", always, chosen=PLAIN, other=MOMENTUM),),
    ),
    KnownIssue(
        title="all groups of an optimizer share the tensor that is given as their learning rate",
        reference=UNREPORTED,
        affects=anywhere,
        sightings=(sighting("groups_do_not_share_a_learning_rate_tensor", always, lr=0.5, changed=1.0),),
    ),
    KnownIssue(
        title="optim.SGD(fused=True) keeps an uninitialised momentum buffer when a GradScaler skips its first step",
        reference=UNREPORTED,
        affects=in_dtypes(torch.float32, torch.float64, torch.bfloat16),
        sightings=(
            sighting(
                "grad_scaler_skips_step_with_nonfinite_gradients",
                fused_momentum,
                form="fused",
                drawn=ONE,
                chosen=MOMENTUM,
                which=0,
                spoilt=float("inf"),
            ),
        ),
    ),
    KnownIssue(
        title="a GradScaler never grows again once its growth interval is set below the steps that it has counted",
        reference=UNREPORTED,
        affects=in_dtypes(torch.float32, torch.float64, torch.bfloat16),
        sightings=(
            sighting(
                "grad_scaler_grows_and_backs_off_as_documented",
                interval_changed,
                steps=[True, True],
                interval=2,
                changed=1,
            ),
        ),
    ),
    KnownIssue(
        title="GradScaler.step takes a closure that is given by position, and steps by scaled gradients",
        reference=UNREPORTED,
        affects=in_dtypes(torch.float32, torch.float64, torch.bfloat16),
        sightings=(
            sighting(
                "grad_scaler_rejects_calls_out_of_order", always, pytest.fail.Exception, misuse="closure by position"
            ),
        ),
    ),
    KnownIssue(
        title="a network that ran in an autocast region raises in a region of another dtype within it",
        reference=UNREPORTED,
        affects=in_dtypes(torch.float32),
        sightings=(sighting("nested_autocast_regions_are_independent", always, RuntimeError, case=Case(), outer=True),),
    ),
    KnownIssue(
        title="forward-over-reverse through mse_loss raises: ZeroTensors are immutable",
        reference="pytorch/pytorch#123996",
        affects=in_dtypes(torch.float64),
        sightings=(
            sighting(
                "forward_over_reverse_matches_reverse_over_reverse",
                always,
                RuntimeError,
                by_hand=False,
                case=Case(),
                name="conv1.weight",
                seed=0,
            ),
        ),
    ),
    KnownIssue(
        title="conv2d's weight gradient adds up over the batch in float16, and stands still at 2,048 equal terms",
        reference=UNREPORTED,
        affects=lambda stack: on_cpu(torch.float16)(stack) and not torch.ops.mkldnn._is_mkldnn_fp16_supported(),
        sightings=(sighting("large_batch_counts_are_exact", always, batch=4096),),
    ),
    KnownIssue(
        title="without oneDNN, conv2d's weight gradient adds up over the batch in bfloat16, and stands still at 512",
        reference=UNREPORTED,
        engines=("no-onednn",),
        affects=on_cpu(torch.bfloat16),
        sightings=tuple(sighting("large_batch_counts_are_exact", always, batch=batch) for batch in (600, 4096)),
    ),
    KnownIssue(
        title="conv2d of one channel in bfloat16 carries NaN and infinity one column beyond their receptive field",
        reference=UNREPORTED,
        affects=bfloat16_instructions,
        sightings=(sighting("nan_spreads_exactly_over_its_receptive_field", default_kernels, **nan_at(31)),),
    ),
    KnownIssue(
        title="convolutions and linear layers in bfloat16 flush subnormal numbers to zero, some at some batches only",
        reference=UNREPORTED,
        affects=bfloat16_instructions,
        sightings=(subnormals(default_kernels),),
    ),
    KnownIssue(
        title="without oneDNN, convolutions of 16 images and more spread NaN and lose subnormals in NNPACK",
        reference="pytorch/pytorch#157237",
        affects=lambda stack: on_cpu(torch.float32)(stack) and torch.backends.nnpack.is_available(),
        sightings=(
            sighting(
                "nan_spreads_exactly_over_its_receptive_field", nnpack, **nan_at(0, batch=17, kernels="no oneDNN")
            ),
            subnormals(nnpack, batch=17, kernels="no oneDNN"),
            largest(nnpack, batch=17, kernels="no oneDNN"),
        ),
    ),
    KnownIssue(
        title="without oneDNN, convolutions of 16 images and more are by Fourier transform, in which nothing is exact",
        reference="pytorch/pytorch#157237",
        engines=("no-onednn",),
        affects=lambda stack: on_cpu(torch.float32)(stack) and torch.backends.nnpack.is_available(),
        sightings=(
            sighting("large_batch_counts_are_exact", always, batch=600),
            sighting("large_batch_counts_are_exact", always, batch=4096),
            subnormals(sixteen, batch=17),
            largest(sixteen, batch=17),
            sighting("overflowing_loss_is_infinite", sixteen, case=Case(weights="one-hot", batch=17), exponent=1),
            at_kinks("gradients_agree_with_the_oracle"),
            at_kinks("cross_entropy_gradients_agree_with_the_oracle", targets="indices"),
            at_kinks("cross_entropy_gradients_agree_with_the_oracle", targets="probabilities"),
            at_kinks("input_gradients_agree_with_the_oracle"),
            at_kinks("training_step_agrees_with_the_oracle", earlier=Case(), lr=1.0),
        ),
    ),
    KnownIssue(
        title="ONNX Runtime's MaxPool keeps NaN only in a window's last place",
        reference=UNREPORTED,
        engines=("onnxruntime",),
        affects=on_cpu(),
        sightings=(sighting("nan_pixel_makes_all_logits_of_its_image_nan", partial(at_the_rim, 3, 0), **nan_at(0)),),
    ),
    KnownIssue(
        title="OpenVINO's ReLU makes 0 of NaN, and its MaxPool (#35935) the lowest number",
        reference="openvinotoolkit/openvino#35649",
        engines=("openvino", "openvino-f32"),
        affects=on_cpu(),
        sightings=(sighting("nan_pixel_makes_all_logits_of_its_image_nan", always, **nan_at(0)),),
    ),
    KnownIssue(
        title="XLA's maxima of 4,096 numbers and more, by YNNPACK on the CPU, lose NaN",
        reference=UNREPORTED,
        engines=("jax",),
        affects=on_cpu(torch.float32, torch.float64),
        sightings=(sighting("nan_pixel_makes_all_logits_of_its_image_nan", xla_pool, **nan_at(0)),),
    ),
    KnownIssue(
        title="XLA takes subnormal numbers as zero on the CPU",
        reference="openxla/xla#22858",
        engines=("jax",),
        affects=on_cpu(torch.float32, torch.float64, torch.bfloat16),
        sightings=(subnormals(always),),
    ),
    KnownIssue(
        title="cross_entropy in float16 is infinite where the sum that it divides is",
        reference="pytorch/pytorch#85791",
        affects=on_cpu(torch.float16),
        sightings=(
            sighting("mean_loss_of_repeated_rows_equals_loss_of_one_row", always, loss="cross-entropy", count=32_768),
        ),
    ),
)
