"""What the page for learners shows: the six steps of training, with the laws about each, and the network's graph."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from lenet import Net


class Step(NamedTuple):
    """One of the six steps of training, in the words of the tutorial's notes, and the laws about it."""

    title: str
    text: str
    code: str
    laws: tuple[str, ...]


STEPS = (
    Step(
        "Define a network with parameters",
        "A `Module` holds its layers, and each layer its weights and biases as `Parameter` objects: tensors that the "
        "module registers, so that `net.parameters()` finds them. The reference network has ten, 61,706 numbers.",
        "net = Net()",
        ("parameters_match_the_tutorial", "assigned_parameter_is_registered", "repr_matches_the_tutorial"),
    ),
    Step(
        "Go through a data set",
        "A `DataLoader` gives the images in batches, N x 1 x 32 x 32, in a new order in each epoch.",
        "for images, targets in loader:",
        ("loader_yields_every_sample_once_an_epoch", "seed_determines_the_order_of_each_epoch"),
    ),
    Step(
        "Run the images through the network",
        "The forward pass: 6 feature maps after conv1, 16 after conv2, 400 flattened features, and ten logits for each "
        "image. Autograd records every operation in a graph.",
        "logits = net(images)",
        (
            "logits_have_shape_dtype_and_device",
            "intermediate_shapes_match_the_tutorial",
            "logits_agree_with_the_oracle",
            "one_hot_weights_route_pixels_to_logits",
        ),
    ),
    Step(
        "Compute the loss",
        "How far the logits are from the targets, as one number: here the mean squared error.",
        "loss = nn.MSELoss()(logits, targets)",
        ("mse_loss_agrees_with_the_oracle", "mean_loss_of_repeated_rows_equals_loss_of_one_row"),
    ),
    Step(
        "Propagate gradients back",
        "`backward()` follows the graph from `loss.grad_fn` to the parameters and adds each gradient to the "
        "parameter's `.grad`. Since it adds, gradients are cleared before: `net.zero_grad()`.",
        "net.zero_grad()\nloss.backward()",
        (
            "graph_reaches_exactly_the_parameters",
            "gradients_agree_with_the_oracle",
            "second_backward_adds_exactly",
            "micro_batch_gradients_accumulate_to_batch_gradients",
            "zero_grad_discards_earlier_gradients",
            "custom_autograd_function_joins_the_graph",
        ),
    ),
    Step(
        "Update the parameters",
        "weight = weight - learning rate * gradient, by hand or by `optim.SGD`. Both give the same network.",
        "with torch.no_grad():\n    for p in net.parameters():\n        p.sub_(p.grad * lr)\n# or: optimizer.step()",
        (
            "manual_update_matches_the_formula",
            "optimizer_update_matches_the_formula",
            "manual_and_optimizer_training_agree_at_powers_of_two",
            "training_step_agrees_with_the_oracle",
            "training_on_digits_matches_the_oracle",
        ),
    ),
)


def graph() -> list[tuple[str, list[str]]]:
    """
    Return the graph of the reference network's loss, from `loss.grad_fn` back to conv1.

    Each node has its name and those of the parameters whose gradients it gives.
    """
    net = Net()
    node: Any = F.mse_loss(net(torch.zeros(1, 1, 32, 32)), torch.zeros(1, 10)).grad_fn
    names, nodes = {id(parameter): name for name, parameter in net.named_parameters()}, []
    while node is not None:
        inputs = [function for function, _ in node.next_functions if function is not None]
        leaves = {function: _parameter(function) for function in inputs}
        nodes.append((node.name(), [names[id(leaf)] for leaf in leaves.values() if leaf is not None]))
        node = next((function for function, leaf in leaves.items() if leaf is None), None)
    return nodes


def _parameter(node: Any) -> Any:
    """Return the parameter whose gradient a node adds to `.grad`, also one that is transposed; or None."""
    if node.name() == "TBackward0":
        node = node.next_functions[0][0]
    return getattr(node, "variable", None)
