"""
torch.compile(mode='reduce-overhead') overwrites gradients and saved tensors of earlier calls

Severity: silent wrong numbers
Reference: pytorch/pytorch#169545
Searched: "torch.compile reduce-overhead gradient accumulation wrong grad cudagraphs overwritten .grad", "cudagraph
trees accessing tensor output of CUDAGraphs that has been overwritten by a subsequent run micro batches backward
accumulate", "CUDAGraph Trees PyTorch documentation limitations overwritten memory cudagraph_mark_step_begin"
(2026-12-01). A comment in pytorch/pytorch#96693 measures the silent case: a gradient of 0.25 for 1.0 after four
micro-batches.

Expected: The sum of the micro-batches' gradients, in every iteration, as without the mode: .grad accumulates
(https://docs.pytorch.org/docs/stable/generated/torch.Tensor.backward.html). The documentation of CUDA graph trees
(https://docs.pytorch.org/docs/stable/torch.compiler_cudagraph_trees.html) says that a later run overwrites the outputs
of an earlier one, which then raise an error; it does not mention .grad, or wrong values.

Observed: In the run of 2026-11-26 (NVIDIA H200, torch 2.11.0+cu130) the first iteration raised "accessing tensor output
of CUDAGraphs that has been overwritten by a subsequent run"; later iterations of the same loop did not, and .grad was
-7.0 to 3.3 times the right value. (Not run with 2.13.0: no GPU. Its message advises to allocate .grad outside of the
graph.)

Cause: The first backward pass of a step installs its output as .grad without a copy (AccumulateGrad;
pytorch/pytorch#96693 shows equal addresses); that memory belongs to the CUDA graph. CUDAGraphTreeManager in
torch/_inductor/cudagraph_trees.py (2.13.0) frees it when the next iteration starts, and the graph's replay writes to it
again. While graphs are warmed up and recorded, dealloc_current_path_weakrefs makes such an access an error;
try_end_curr_execution, for graphs that are replayed, does not.
"""

import sys

import torch

if not torch.cuda.is_available():
    print("This machine cannot show it: it needs CUDA.")
    sys.exit(77)

layer = torch.nn.Linear(4, 1, bias=False, device="cuda")
compiled = torch.compile(layer, mode="reduce-overhead")
micro_batches = [torch.full((8, 4), value, device="cuda") for value in (1.0, 2.0, 3.0)]
outcomes = []
for _ in range(6):
    layer.weight.grad = None
    try:
        for batch in micro_batches:
            compiled(batch).sum().backward()
        outcomes.append(layer.weight.grad.tolist()[0])
    except RuntimeError as error:
        if "overwritten by a subsequent run" not in str(error):
            raise
        outcomes.append("RuntimeError: overwritten by a subsequent run")

print(f"observed: gradients in six iterations: {outcomes}")
print(f"expected: {[48.0] * 4} in each")
sys.exit(any(outcome != [48.0] * 4 for outcome in outcomes))
