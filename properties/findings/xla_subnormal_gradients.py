"""
XLA's gradients that are subnormal numbers are zero on the CPU

Severity: surprising
Reference: openxla/xla#22858
Searched: "jax gradient subnormal zero CPU flush denormals backward differs from PyTorch", "XLA CPU denormals flushed to
zero subnormal numbers jax", "openxla xla 22858 denormal flush CPU" (2026-12-01). Also jax-ml/jax#39798: the gradient of
silu at -709 in float64 is zero.

Expected: The gradient of 2**-70 * (w @ x) with x = (2**-70, 1) is (2**-140, 2**-70); float32 holds both exactly, and
PyTorch returns both. JAX documents that XLA flushes subnormal numbers among its "sharp bits"
(https://docs.jax.dev/en/latest/notebooks/Common_Gotchas_in_JAX.html, added by jax-ml/jax#26668), but has no option.

Observed: jax 0.10.2 on the CPU returns (0.0, 8.5e-22): the first gradient is lost, although no input is subnormal. (The
logits' softmax of a network that is certain has such gradients.)

Cause: As for other subnormal numbers: the CPU client runs every executable, here the backward pass, under
tsl::port::ScopedFlushDenormal (xla/pjrt/cpu/cpu_client.cc, undated copy of main), which sets the processor's
flush-to-zero flag. A result below 2**-126 becomes zero.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

x = np.array([2.0**-70, 1], np.float32)
gradient = np.asarray(jax.grad(lambda w: jnp.float32(2.0**-70) * (w @ x))(jnp.ones(2)))
expected = np.array([2.0**-140, 2.0**-70], np.float32)

print(f"observed: gradient {gradient}")
print(f"expected: gradient {expected}")
sys.exit(bool((gradient != expected).any()))
