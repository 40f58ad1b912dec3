"""
Linear layers in bfloat16 on Intel AMX leak NaN and infinity into the row before, from 17 rows on

Severity: silent wrong numbers
Reference: uxlfoundation/oneDNN#5717
Searched: "oneDNN 5717 AMX bf16 matmul NaN leaks into previous row", "pytorch bf16 linear AMX NaN contaminates other
rows batch CPU nn.Linear mkldnn_linear", "brgemm AMX maybe_pre_process_k_tail NaN leak K tail torch.nn.Linear torch.bmm
bf16 CPU" (2026-12-01). Fixed in oneDNN by uxlfoundation/oneDNN#5723 (2026-08-04). pytorch/pytorch#171034 (NaN instead
of inf) may be the same.

Expected: Row i of the result depends on row i of the input alone: y = x A^T + b
(https://docs.pytorch.org/docs/stable/generated/torch.nn.Linear.html). So it is in float32, with 16 rows, and without
AMX.

Observed: In the run of 2026-11-26 (Intel Xeon with AMX, torch 2.13.0+cpu), with 17 images of which one has a NaN pixel,
the logits and the gradient of the image before it are NaN. (Without AMX the same call is right; this script has not run
on a machine with it.)

Cause: jit_brgemm_amx_uker_base_t::maybe_pre_process_k_tail in src/cpu/x64/brgemm/jit_brgemm_amx_uker.cpp (oneDNN
3.12.0, which torch 2.13.0 contains; corrected in 2a743fd). AMX multiplies 32 columns at once. If the rows' length is no
multiple of 32, the last tile of a row also holds the first elements of the next row, which are multiplied by zeros: NaN
times 0 is NaN. Only the last 16 rows, whose read would leave the matrix, were copied to a buffer padded with zeros.
"""

import sys

import torch

if not getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)():
    print("This machine cannot show it: it needs a CPU with Intel AMX.")
    sys.exit(77)

layer = torch.nn.Linear(400, 120, dtype=torch.bfloat16)
nan_rows = {}
for rows in (16, 17):
    features = torch.ones(rows, 400, dtype=torch.bfloat16)
    features[1] = float("nan")
    nan_rows[rows] = layer(features).isnan().any(1).nonzero().flatten().tolist()

print(f"observed: NaN in row 1 of 17: rows {nan_rows[17]} of the result have NaN; of 16: rows {nan_rows[16]}")
print("expected: row [1] alone")
sys.exit(nan_rows[17] != [1] or nan_rows[16] != [1])
