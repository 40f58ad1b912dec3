"""
XLA's maxima of 4,096 or more elements, computed by YNNPACK on the CPU, lose NaN

Severity: silent wrong numbers
Reference: no report found
Searched: "jax cpu max NaN lost jnp.max large array returns wrong NaN YNNPACK", "XLA CPU YNNPACK reduce maximum NaN
propagation", "jax reduce_window max pooling NaN not propagated CPU jit", "YNNPACK reduce_max NaN minmax propagate
XNNPACK" (2026-12-01). Others: openxla/xla#21461 and tensorflow/tensorflow#116992 are about any number of elements, with
the option xla_cpu_enable_fast_min_max; openxla/xla#48378 is about reducers that YNNPACK drops.

Expected: NaN. jax.numpy.max reduces by jax.numpy.maximum, which returns NaN if one element is NaN
(https://docs.jax.dev/en/latest/_autosummary/jax.numpy.maximum.html), as numpy.max does; so do 4,095 elements, and 4,096
without YNNPACK (XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type=).

Observed: jax 0.10.2 on the CPU: the maximum of a NaN and zeros is nan for 4,095 elements and 0.0 for 4,096; the maximum
of 4,096 NaN is -inf. jax.lax.reduce_window, max pooling, loses NaN alike.

Cause: IsInstructionPreferredByYnn in xla/backends/cpu/ynn_support.cc (undated copy of main) hands reductions from 4,096
elements on to YNNPACK, whether or not NaN must be propagated. XNNPACK gives no guarantee about NaN in minima and maxima
(google/XNNPACK#441), and min_max_accumulator in ynnpack/kernels/reduce/min_max_accumulator.h (14f12a9) computes
max(accumulator, number) by instructions that return the second operand if one is NaN, so that the next number replaces
a NaN.
"""

import sys

import jax.numpy as jnp
import numpy as np

maxima = {}
for size in (4095, 4096):
    numbers = np.zeros(size, np.float32)
    numbers[0] = np.nan
    maxima[size] = float(jnp.max(numbers))
of_nan = float(jnp.max(np.full(4096, np.nan, np.float32)))

print(f"observed: the maximum of NaN and zeros is {maxima[4095]} for 4,095 elements and {maxima[4096]} for 4,096")
print(f"observed: the maximum of 4,096 NaN is {of_nan}")
print("expected: nan for all three")
sys.exit(not np.isnan([maxima[4096], of_nan]).all())
