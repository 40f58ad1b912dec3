"""The project's own words, one sentence each: the report shows them, and the root README repeats them."""

GLOSSARY = {
    "law": "A property that every correct implementation has; each law is one test function.",
    "subject": "The implementation that is judged: a network, an update or a training step.",
    "engine": "A way to execute a network's forward pass, such as eager, `torch.compile` or ONNX Runtime.",
    "stack": "A subject, an engine, a device and a dtype, with the versions and the hardware that they run on.",
    "case": "The small recipe that a law draws at random and builds its tensors from.",
    "oracle": "The same network in float64 NumPy, without PyTorch; it computes the reference values.",
    "budget": "The rounding error that a correct computation of a case may have, computed by the oracle.",
    "mutant": "A subject with one deliberate fault, which the law that it names must reject.",
    "twin": "A correct variant that looks different, which no law may reject.",
    "known issue": "A bug of PyTorch or of an engine that certain stacks must show; a run fails once it is gone.",
    "verdict": "The result of a run or of the gate: passed, failed, inconclusive or error.",
}
