"""
A network that has run in an autocast region raises in a nested region of another dtype

Severity: exception or crash
Reference: no report found
Searched: "nested autocast different dtype cached cast weight cache RuntimeError expected same dtype bfloat16 float16",
"autocast weight cache not keyed by dtype nested autocast cached_cast clear_autocast_cache wrong dtype", "nested
torch.autocast float16 inside bfloat16 context raises error second forward cache_enabled" (2026-12-01)

Expected: The inner region gives a float16 result, as it does on its own and with `cache_enabled=False`. "Type mismatch
errors in an autocast-enabled region are a bug; if this is what you observe, please file an issue"
(https://docs.pytorch.org/docs/stable/amp.html#torch.autocast), which also describes nested regions.

Observed: RuntimeError "mat1 and mat2 must have the same dtype, but got Half and BFloat16". If both operands are
parameters, nothing is raised, but the result is bfloat16 in the float16 region: torch.bfloat16 here.

Cause: `cached_cast` in aten/src/ATen/autocast_mode.cpp (read at commit 008ec6b of the main branch) caches the casts of
float32 parameters under the parameter's TensorImpl alone, not under the dtype too. It returns the outer region's
bfloat16 cast where float16 is wanted. The cache is cleared only when the outermost region ends (`autocast.__exit__` in
torch/amp/autocast_mode.py, 2.13.0).
"""

import sys

import torch

linear, x = torch.nn.Linear(2, 2), torch.ones(1, 2)
left, right = torch.nn.Parameter(torch.ones(1, 1)), torch.nn.Parameter(torch.ones(1, 1))

with torch.autocast("cpu", dtype=torch.bfloat16):
    linear(x)
    left @ right
    with torch.autocast("cpu", dtype=torch.float16):
        product = (left @ right).dtype
        try:
            observed = str(linear(x).dtype)
        except RuntimeError as error:
            if "same dtype" not in str(error):
                raise
            observed = f"RuntimeError: {error}"

print(f"observed in a float16 region within a bfloat16 one: {observed}; a product of parameters is {product}")
print("expected: torch.float16 and torch.float16")
sys.exit(observed != "torch.float16" or product != torch.float16)
