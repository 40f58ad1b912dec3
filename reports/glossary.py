"""The project's own words, one sentence each: the report shows them, and the root README repeats them."""

GLOSSARY = {
    "law": "A property that every correct implementation has; each law is one test function.",
    "subject": "What is judged: a network, an update, a training step, or your replacement of a part of PyTorch.",
    "engine": "A way to execute a network's forward pass, such as eager, `torch.compile` or ONNX Runtime.",
    "stack": "A subject, an engine, a device and a dtype, with the versions and the hardware that they run on.",
    "case": "A small recipe for a network, images and targets; Hypothesis draws it, and tensors are built from it.",
    "oracle": "The same network in float64 NumPy, without PyTorch; it computes the reference values.",
    "budget": "The unit of errors: the typical error from rounding alone, as the oracle estimates it; 8 are allowed.",
    "mutant": "A subject with one deliberate fault, registered with the law that must reject it.",
    "twin": "A correct variant that looks different; no law may reject it.",
    "known issue": "A registered bug of PyTorch or of an engine; on the stacks that have it, its symptoms "
    "are expected and forgiven.",
    "known deviation": "A failure of a subject that its authors expect and list (`--known`); its symptoms are "
    "forgiven.",
    "verdict": "The result of a run (passed or failed), or of the gate (also inconclusive or error).",
}
