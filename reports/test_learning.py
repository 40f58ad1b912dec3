"""The page for learners names laws that exist, and draws the graph that autograd records."""

from __future__ import annotations

from pathlib import Path

from properties.law_index import laws, short
from reports.commands import report
from reports.conftest import Files, entry, write
from reports.figures import OPERATIONS
from reports.learning import STEPS, graph


def test_every_step_names_laws_that_exist() -> None:
    assert {name for step in STEPS for name in step.laws} <= set(map(short, laws()))
    assert len(STEPS) == 6


def test_graph_gives_each_parameter_one_gradient() -> None:
    nodes = graph()

    assert nodes[0] == ("MseLossBackward0", [])
    assert len(nodes) == len(OPERATIONS)
    assert sorted(name for _, names in nodes for name in names) == sorted(
        f"{layer}.{kind}" for layer in ("conv1", "conv2", "fc1", "fc2", "fc3") for kind in ("weight", "bias")
    )


def test_steps_link_to_the_laws_of_the_run(tmp_path: Path, files: Files) -> None:
    judged = entry("test_second_backward_adds_exactly")
    write(tmp_path, files | {"laws.json": files["laws.json"] | {"laws": [judged]}})

    assert report([str(tmp_path)]) == 0
    learn, run = (tmp_path / "learn.html").read_text(), (tmp_path / "index.html").read_text()

    assert (
        '<a href="index.html#second_backward_adds_exactly">second_backward_adds_exactly</a> <span class="good">'
        in learn
    )
    assert '<tr id="second_backward_adds_exactly">' in run
    assert 'logits_agree_with_the_oracle <span class="soft">(not judged in this run)</span>' in learn


def test_worst_known_issues_come_first(tmp_path: Path, files: Files) -> None:
    surprising = "An optimizer writes its default settings into the parameter group dictionaries passed to it"
    wrong = "optim.SGD(fused=True) writes to memory outside a parameter that is a strided view"
    issues = [
        {"title": title, "reference": "no report found"} for title in ("Of an earlier version", surprising, wrong)
    ]
    write(tmp_path, files | {"laws.json": files["laws.json"] | {"laws": [entry("test_sums", known_issues=issues)]}})

    report([str(tmp_path)])
    shown = (tmp_path / "index.html").read_text()

    positions = [shown.index(f"<td>{severity}</td>") for severity in ("silent wrong numbers", "surprising", "unknown")]
    assert positions == sorted(positions)
