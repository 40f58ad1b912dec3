"""The figures in benchmarks/README.md are those of the published run, and its settings are those of the code."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from benchmarks.accepted import FILE, read
from benchmarks.comparison import BENCHMARKS, SAMPLED_CALLS
from benchmarks.decision import FALSE_ALARM_RATE, MISS_RATE, Rates
from benchmarks.fakes import ROOT
from benchmarks.gate import BUDGET, DEFAULT, DELTA, EXIT_CODES
from benchmarks.gate_trial import REPLAYS, SAMPLE_SECONDS
from benchmarks.interleaved import BLOCKS, TREND, WARMUP_SECONDS
from benchmarks.latency import QUERIES
from benchmarks.trial_table import RULES, interval, plan
from benchmarks.workload import TIMED_BATCHES

RUN = ROOT / "reports/runs/2026-11-23_amd-epyc_torch-2.13.0"
README = (ROOT / "benchmarks/README.md").read_text()
TEXT = " ".join(README.split())
CONDITIONS = {
    "equal (A/A)": "A/A",
    "2 % slower": "+2%",
    "3 % slower": "+3%",
    "5 % slower": "+5%",
    "10 % slower": "+10%",
    "needless copy": "needless copy",
    "for-loop SGD, base foreach": "for-loop SGD",
}
LOADS = {"none": (0,), "a training run": (1,), "both": (0, 1)}


@cache
def published(name: str) -> dict[str, Any]:
    """Return a file of the published run, which has format 2."""
    content: dict[str, Any] = json.loads((RUN / name).read_text())
    assert content["format"] == 2
    return content


def table(*header: str) -> list[list[str]]:
    """Return the rows of the README's table whose header begins with these cells."""
    lines = README.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {' | '.join(header)} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().strip("*") for cell in line.strip("|").split("|")])
    return rows


def timing(engine: str, operation: str, batch: int) -> dict[str, Any]:
    return next(
        one
        for one in published("engine_times.json")["timings"]
        if (one["engine"], one["operation"], one["batch"]) == (engine, operation, batch)
    )


def verdicts(condition: str, loads: tuple[int, ...] = (0, 1)) -> list[dict[str, Any]]:
    return [
        one
        for one in published("gate_trial.json")["verdicts"]
        if one["condition"] == condition and one["beside"] in loads
    ]


def test_engine_table_has_the_published_figures() -> None:
    rows = table("engine", "1", "16")

    assert {row[0].removesuffix(" (bfloat16)") for row in rows} == set(published("engine_times.json")["claims"])
    for name, *cells, start in rows:
        engine = name.removesuffix(" (bfloat16)")
        for batch, cell in zip((1, 16, 256, 4096), cells, strict=True):
            one = timing(engine, "forward", batch)
            assert cell == f"{one['images_per_second']:,.0f} ({100 * one['share']:.1f} %)", (engine, batch)
        cold = timing(engine, "forward", 1)["cold"]
        decimals = len(start.removesuffix(" s").partition(".")[2])
        assert start == f"{cold['build'] + cold['first']:.{decimals}f} s"
        assert (name != engine) == (published("engine_times.json")["claims"][engine] == "bfloat16")


def test_training_table_has_the_published_figures() -> None:
    rows = table("engine", "256")

    trained = {one["engine"] for one in published("engine_times.json")["timings"] if one["operation"] != "forward"}
    assert {row[0] for row in rows} == trained - {"eager again"}
    for engine, cell in rows:
        assert cell == f"{timing(engine, 'training step', 256)['images_per_second']:,.0f}"
    assert {one["engine"] for one in published("engine_times.json")["refused"]} == {"compiled"}


def test_controls_of_the_engines_have_the_published_figures() -> None:
    again, order = published("engine_times.json")["again"], published("engine_times.json")["order"]

    assert f"took {min(again):.3f} to {max(again):.3f} times as long" in TEXT
    assert max(abs(ratio - 1) for ratio in again) < 0.1
    assert "less than about 10 % in these tables mean nothing" in TEXT
    processes = f"for {len(order)} processes, those of {len(published('engine_times.json')['claims'])} engines and"
    assert f"p at least {min(one['p'] for one in order):.2f} {processes}" in TEXT


def test_example_output_of_the_gate_is_that_of_the_published_run() -> None:
    gate = published("gate.json")

    lines = [line.split() for line in README.splitlines()]
    for one in gate["benchmarks"]:
        estimate, lower, upper = (f"{1 + one['found'][key]:.4f}" for key in ("estimate", "lower", "upper"))
        base, head = (f"{1e3 * median(pair[side] for pair in one['pairs']):.3f}" for side in ("base", "head"))
        row = [
            one["name"],
            one["verdict"],
            estimate,
            lower,
            "to",
            upper,
            str(len(one["pairs"])),
            base,
            "ms",
            head,
            "ms",
        ]
        assert [*row, *one["why"].split()] in lines
    assert f"{gate['verdict'].upper()}: {gate['reason']}" in TEXT
    counters = gate["benchmarks"][0]["counters"]["base"]
    for counter in ("operators", "allocations", "peak memory"):
        assert f"{counter} rose from {counters[counter]:,} to" in TEXT


@pytest.mark.parametrize("row", table("head", "load"), ids=lambda row: f"{row[0]}, {row[1]}")
def test_trial_table_has_the_published_figures(row: list[str]) -> None:
    own = verdicts(CONDITIONS[row[0]], LOADS[row[1]])
    counts = [sum(one["verdict"] == kind for one in own) for kind in ("failed", "passed", "inconclusive")]
    samples = [one["sequential"] for one in own]
    others = [f"{sum(rule(**sample) for sample in samples)} of {len(own)}" for rule in RULES.values()]
    assert row[2:] == [f"{counts[0]} of {len(own)}", *map(str, counts[1:]), *others]


def test_trial_table_has_all_published_verdicts() -> None:
    everything = published("gate_trial.json")["verdicts"]
    gates = {(one["seed"], one["beside"]) for one in everything}
    minutes = sum(one["seconds"] for one in everything) / 60

    assert sum(int(row[2].split(" of ")[1]) for row in table("head", "load")) == len(everything)
    assert f"{len(everything)} verdicts from {len(gates)} gates in {minutes:.0f} minutes" in TEXT
    assert f"with a time limit of {published('gate_trial.json')['budget']:g} s per benchmark" in TEXT
    assert published("gate_trial.json")["budget"] == BUDGET / 2  # "with half of today's time limit"


@pytest.mark.parametrize("row", table("head", "gates"), ids=lambda row: row[0])
def test_table_of_error_rates_has_the_published_figures(row: list[str]) -> None:
    own = verdicts(CONDITIONS[row[0]])
    gates = {seed: [one["verdict"] for one in own if one["seed"] == seed] for seed in {one["seed"] for one in own}}
    failed_gates = sum("failed" in each for each in gates.values())
    failed = sum(one["verdict"] == "failed" for one in own)
    seconds = [median(one["seconds"] for one in verdicts(CONDITIONS[row[0]], (load,))) for load in (0, 1)]

    intervals = [interval(failed_gates, len(gates), len(gates)), interval(failed, len(own), len(gates))]
    shown = [f"{100 * low:.0f} to {100 * high:.0f} %" for low, high in intervals]
    assert row[1:4] == [str(len(gates)), str(failed_gates), shown[0]]
    assert row[4:7] == [str(len(own)), str(failed), shown[1]]
    assert row[7:] == [f"{each:.0f} s" for each in seconds]


def test_plan_of_the_trial_is_that_of_the_code() -> None:
    equal, slower = (2 * sum(n for one, _, n in plan(False) if one.name == name) for name in ("A/A", "+5%"))

    assert f"{equal} gates on equal sides and {slower} on code 5 % slower" in TEXT
    assert f"at most {100 * interval(0, equal, equal)[1]:.1f} % false alarms" in TEXT
    assert f"at least {100 * interval(slower, slower, slower)[0]:.1f} % detections" in TEXT


def test_inconclusive_verdicts_and_gates_have_the_published_figures() -> None:
    equal = verdicts("A/A")
    inconclusive = [one for one in equal if one["verdict"] == "inconclusive"]
    gates = {(one["seed"], one["beside"]) for one in equal}
    undecided = {(one["seed"], one["beside"]) for one in inconclusive}

    assert f"so did {len(inconclusive)} of {len(equal)} equal benchmarks" in TEXT
    assert f"{len(undecided)} of the trial's {len(gates)} gates on equal sides were inconclusive" in TEXT
    assert f"Of the {len(gates)} gates on equal sides, {len(undecided)} were inconclusive" in TEXT
    assert [one["verdict"] for one in verdicts("+2%")] == ["inconclusive"] * 3


def test_text_on_slower_heads_has_the_published_figures() -> None:
    slower = [one for condition in ("+3%", "+5%", "+10%") for one in verdicts(condition)]
    (sgd,) = (one["found"] for one in verdicts("for-loop SGD"))

    assert all(one["verdict"] != "passed" for one in slower)
    assert f"None of the {len(slower)} verdicts on a head that is slower by 3 %, 5 % or 10 %" in TEXT
    assert not any(one["ratios"] for one in verdicts("needless copy"))
    estimate, lower, upper = (f"{100 * sgd[key]:+.1f} %" for key in ("estimate", "lower", "upper"))
    assert f"by {estimate} (bounds: {lower} to {upper})" in TEXT


def test_text_on_other_rules_has_the_published_figures() -> None:
    equal, slower = (
        [sum(rule(**one["sequential"]) for one in verdicts(condition)) for rule in RULES.values()]
        for condition in ("A/A", "+5%")
    )
    missed = [len(verdicts("+5%")) - count for count in slower]

    assert f"Of the {len(verdicts('A/A'))} verdicts on equal sides" in TEXT
    assert f"the other rules called {min(equal)} to {max(equal)} slower" in TEXT
    assert f"of the {len(verdicts('+5%'))} on a slowdown of 5 % they missed {min(missed)} to {max(missed)}" in TEXT
    assert f"They are faster: {2 * SAMPLE_SECONDS:g} s per benchmark" in TEXT


def test_example_of_an_accepted_rise_can_be_read(tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    (tmp_path / FILE).parent.mkdir()
    (tmp_path / FILE).write_text(example)

    assert f"`{FILE}`" in README
    assert read(tmp_path, BENCHMARKS)["training-step-64"]["peak memory"].at_most == 1_200_000


def test_settings_are_those_of_the_code() -> None:
    assert {row[1]: int(row[0]) for row in table("exit code")} == EXIT_CODES | {"(no verdict)": 130}
    assert f"the tolerated slowdown ({100 * DELTA:g} %, `--delta`)" in TEXT
    assert f"By default it is {BUDGET:g} s times the number of benchmarks" in TEXT
    rates = Rates.of(len(DEFAULT))
    assert f"the lower one at a level of {100 * (1 - rates.slower):.1f} % (for three benchmarks)" in TEXT
    assert f"the upper one at {100 * (1 - rates.within):g} %" in TEXT
    assert "`{}`, `{}` and `{}`".format(*DEFAULT) in TEXT
    assert f"at most {100 * FALSE_ALARM_RATE:g} % if head" in TEXT
    assert f"at most {100 * MISS_RATE:g} %." in TEXT
    assert f"{QUERIES:,} forward passes" in TEXT
    assert f"None of {len(DEFAULT) * REPLAYS:,} replays, {REPLAYS:,} per benchmark, failed" in TEXT
    assert [row[0].strip("`") for row in table("benchmark of the gate")] == list(
        dict.fromkeys(re.sub(r"\d+$", "N", name) for name in BENCHMARKS)
    )
    assert f"99th percentiles of single calls, {SAMPLED_CALLS} in each process" in TEXT
    *sizes, largest = (f"{batch:,}" for batch in TIMED_BATCHES)
    assert f"Batch sizes are {', '.join(sizes)} and {largest}." in TEXT
    assert BLOCKS == 6
    assert "once the last six blocks of calls have no trend" in TEXT
    assert f"at a level of {100 * TREND:g} %. A step whose times still have one after {WARMUP_SECONDS:g} s" in TEXT


@pytest.mark.parametrize("environment", sorted(set(re.findall(r"tox run -e ([\w-]+)", TEXT))))
def test_tox_environments_exist(environment: str) -> None:
    assert f"[testenv:{environment}]" in (ROOT / "tox.ini").read_text()
