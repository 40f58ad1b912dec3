"""
XLA treats subnormal numbers as zero on the CPU

Severity: surprising
Reference: openxla/xla#22858
Searched: "XLA CPU denormals flushed to zero subnormal numbers jax", "openxla xla 22858 denormal flush CPU", "jax
gradient subnormal zero CPU flush denormals backward differs from PyTorch" (2026-12-01). Also jax-ml/jax#16200 (closed:
intended) and jax-ml/jax#26658; openxla/xla#35740, an option to turn it off, was closed unmerged.

Expected: x * 2 is twice x, and x is not equal to 0, for every x > 0 that is not too large: gradual underflow of IEEE
754, as in NumPy and PyTorch (torch.set_flush_denormal is off by default). JAX documents the difference among its "sharp
bits" (https://docs.jax.dev/en/latest/notebooks/Common_Gotchas_in_JAX.html, added by jax-ml/jax#26668), but has no
option.

Observed: jax 0.10.2 on the CPU: for x = 1.4e-45, the smallest subnormal number of float32, x * 2 is 0.0 and x == 0 is
True, but x itself is stored as 1.4e-45. 2**-130 * 2**10, a normal number, is 0.0 as well.

Cause: The CPU client runs every executable under tsl::port::ScopedFlushDenormal (xla/pjrt/cpu/cpu_client.cc and
cpu_executable.cc, undated copy of main), which sets the processor's flush-to-zero and denormals-are-zero flags, "to
match the default TF ThreadPool behavior".
"""

import sys

import jax.numpy as jnp
import numpy as np

smallest = jnp.asarray(np.float32(2.0**-149))
doubled = float(smallest * 2)
is_zero = bool(smallest == 0)
normal_product = float(jnp.asarray(np.float32(2.0**-130)) * 2.0**10)

print(
    f"observed: x = {float(smallest):.1e}, x * 2 = {doubled}, x == 0 is {is_zero}; 2**-130 * 2**10 = {normal_product}"
)
print(f"expected: x * 2 = {2.0**-148:.1e}, x == 0 is False; 2**-130 * 2**10 = {2.0**-120}")
sys.exit(doubled != 2.0**-148 or is_zero or normal_product != 2.0**-120)
