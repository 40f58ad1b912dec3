"""The command `lenet-properties train`: what it trains and records, stopping and resuming, and its errors."""

from __future__ import annotations

import json
import os
import resource
import shlex
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from lenet import Net, checkpoint, digits, feature_maps, train, training
from lenet.digits import Digits
from lenet.files import RESULTS, locked
from lenet.testing import SETTINGS, four_batches, same_parameters, trained
from lenet.training import MAX_SEED, Epoch, Progress, Settings


@pytest.mark.slow
def test_command_trains_and_records_and_does_not_overwrite_an_earlier_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--epochs", "1", "--checkpoint", "run.pt", "--record", "records", "--compare"]
    monkeypatch.chdir(tmp_path)

    assert train.main(command) == 0
    assert "test accuracy" in capsys.readouterr().out
    record = json.loads(Path("records/training.json").read_text())
    data, (net, settings, progress) = digits.load(), checkpoint.resume(Path("run.pt"), digits.load())
    torch.manual_seed(0)
    for when, shown in (("before", Net()), ("after", net)):
        maps = feature_maps(shown, data.test_images[:1])
        assert record["feature_maps"][when] == {name: map_[0].tolist() for name, map_ in maps.items()}
    assert record["command"] == shlex.join(["lenet-properties", "train", *command])
    assert record["settings"] == asdict(settings) == asdict(Settings(epochs=1))
    assert record["history"] == [asdict(epoch) for epoch in progress.history]
    compared = [(label, len(history)) for label, history in record["comparisons"].items()]
    assert compared == [("optim.SGD", 1), ("the oracle", 1)]
    assert record["history"][0]["accuracy"] == training.accuracy(net, data.test_images, data.test_labels)
    assert record["digit"] == {"label": int(data.test_labels[0]), "pixels": data.test_images[0, 0].tolist()}

    assert train.main(command) == 2
    assert "holds an earlier run" in capsys.readouterr().err


def test_comparison_prints_and_records_what_each_training_reaches(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded: list[dict[str, list[Epoch]]] = []
    compared = {"optim.SGD": [Epoch(0.5, 0.25), Epoch(0.125, 0.75)], "the oracle": [Epoch(0.5, 0.5), Epoch(0.25, 1.0)]}
    monkeypatch.setattr(train, "comparisons", lambda data, settings: compared)

    assert train._compare(four_batches(), SETTINGS, recorded.append) == 0

    printed = "optim.SGD: test accuracy 75.0%, loss 0.1250\nthe oracle: test accuracy 100.0%, loss 0.2500\n"
    assert capsys.readouterr().out == printed
    assert recorded == [compared]


def test_ctrl_c_stops_a_comparison_and_records_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(data: Digits, settings: Settings) -> None:
        raise KeyboardInterrupt

    recorded: list[dict[str, list[Epoch]]] = []
    monkeypatch.setattr(train, "comparisons", interrupt)

    assert train._compare(four_batches(), SETTINGS, recorded.append) == 130

    assert capsys.readouterr().err == "stopped the comparison\n"
    assert not recorded


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume", "--checkpoint", "none.pt"], "none.pt: no such checkpoint"),
        (["--resume", "--lr", "0.1"], "was trained with --lr 0.5"),
        (["--resume", "--epochs", "1"], "already has 2 epochs; --epochs must be at least that"),
        (
            ["--resume", "--lr", "0.1", "--seed", "0"],
            "was trained with --lr 0.5; omit the option, or name another file\n",
        ),
        (["--mnist", "nowhere"], "no such folder"),
        (["--checkpoint", "."], ". is a folder"),
    ],
)
def test_error_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = Progress(history=[Epoch(0.1, 0.2)] * SETTINGS.epochs)
    checkpoint.save(RESULTS / "training.pt", Net(), digits.load(), SETTINGS, done)

    assert train.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_finished_run_continues_for_more_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--epochs` is the only setting that may differ from the checkpoint's; if it is equal, nothing is left to do."""
    data = four_batches()
    monkeypatch.setattr(digits, "load", lambda mnist: data)
    path, settings = tmp_path / "run.pt", replace(SETTINGS, batch=16)
    net, progress = trained(settings, data)
    checkpoint.save(path, net, data, settings, progress)

    assert train.main(["--resume", "--checkpoint", str(path), "--epochs", "2"]) == 0
    assert "epoch 2:" not in capsys.readouterr().out
    assert train.main(["--resume", "--checkpoint", str(path), "--epochs", "3", "--lr", "0.5"]) == 0
    printed = capsys.readouterr().out

    reached = checkpoint.resume(path, data)[2]
    assert reached == trained(replace(settings, epochs=3), data)[1]
    first, last = reached.history[0], reached.history[2]
    assert f"{first.accuracy:.1%}" != f"{last.accuracy:.1%}"
    assert f"epoch 3: loss {last.loss:.4f}, accuracy {last.accuracy:.1%}" in printed
    assert f"test accuracy {last.accuracy:.1%}, loss {last.loss:.4f} after 3 epochs" in printed


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", 1), ("batch", 1), ("lr", 0.0), ("seed", 0), ("seed", MAX_SEED), ("lr", float("inf"))],
)
def test_setting_at_the_limit_of_its_range_is_accepted(tmp_path: Path, name: str, value: float) -> None:
    options = train._options([f"--{name}", str(value), "--checkpoint", str(tmp_path / "run.pt")])

    assert getattr(options, name) == value
    assert not options.resume


@pytest.mark.parametrize(
    "arguments",
    [
        ["--epochs", "0"],
        ["--batch", "0"],
        ["--batch", "-1"],
        ["--lr", "nan"],
        ["--lr", "-0.1"],
        ["--seed", "-1"],
        ["--seed", str(MAX_SEED + 1)],
        ["--optimizer", "adam"],
    ],
)
def test_setting_out_of_range_is_rejected(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        train.main(arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "--epochs 0: must be at least 1\n"),
        (["--seed", "-1"], "--seed -1: must be at least 0 and at most 4294967295\n"),
    ],
)
def test_error_names_the_range_of_a_setting(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit):
        train.main(arguments)

    assert capsys.readouterr().err.endswith(message)


def test_loss_that_is_not_finite_is_null_in_the_record_and_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such a run is not compared: the others diverge as well."""
    data = four_batches()
    monkeypatch.setattr(digits, "load", lambda mnist: data)
    arguments = ["--lr", "1e38", "--epochs", "2", "--checkpoint", str(tmp_path / "run.pt"), "--compare"]

    assert train.main([*arguments, "--record", str(tmp_path)]) == 1

    error = capsys.readouterr().err
    assert error == "error: the loss of epoch 1 is not finite at --lr 1e+38; start another run with a smaller --lr\n"
    record = json.loads((tmp_path / "training.json").read_text(), parse_constant=pytest.fail)
    assert [epoch["loss"] for epoch in record["history"]] == [None, None]
    assert record["comparisons"] == {}


def test_second_ctrl_c_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "_run", interrupt)

    assert train.main(["--checkpoint", str(tmp_path / "run.pt")]) == 130
    assert capsys.readouterr().err == "stopped at once; if an epoch was completed, continue from it with --resume\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("used", ["run.pt", "link.pt", "record/training.json"])
def test_two_runs_do_not_share_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], used: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("link.pt").symlink_to("run.pt")
    arguments = ["--record", "record", "--checkpoint", used if used.endswith(".pt") else "own.pt"]
    name = "run.pt" if used.endswith(".pt") else used

    with locked(Path(name).absolute()):
        assert train.main(arguments) == 2

    assert f"{name} is in use by another run; wait for its end, or name another file\n" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.lock"))


def test_full_disk_is_one_line_and_keeps_the_earlier_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, path = four_batches(), tmp_path / "run.pt"
    monkeypatch.setattr(digits, "load", lambda mnist: data)
    arguments = ["--checkpoint", str(path), "--batch", "64"]
    assert train.main([*arguments, "--epochs", "1"]) == 0
    earlier, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        assert train.main([*arguments, "--epochs", "2", "--resume"]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert capsys.readouterr().err == "error: cannot write: File too large\n"
    assert path.read_bytes() == earlier
    assert list(tmp_path.iterdir()) == [path]


def test_output_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lenet_properties", "train", "--epochs", "1", "--batch", "64"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*command, "--checkpoint", str(tmp_path / "run.pt")],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )

    assert done.returncode == 2
    assert done.stderr == "error: cannot write: No space left on device\n"


def test_folders_that_are_files_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    for option, path in (("--record", tmp_path / "file"), ("--checkpoint", tmp_path / "file" / "run.pt")):
        with pytest.raises(SystemExit, match="2"):
            train.main([option, str(path)])


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint_to_resume_from(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "lenet_properties",
        "train",
        "--batch",
        "64",
        "--checkpoint",
        str(tmp_path / "run.pt"),
    ]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # with more threads, sums have another order
    process = subprocess.Popen(
        [*command, "--epochs", "500"], stdout=subprocess.PIPE, text=True, env=os.environ | threads
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 2"):
            process.send_signal(signal.SIGINT)
            break
    rest = process.stdout.read()
    process.stdout.close()

    assert process.wait() == 130
    assert "continue with --resume" in rest
    net, settings, progress = checkpoint.resume(tmp_path / "run.pt", digits.load())
    settings = Settings(epochs=len(progress.history) + 1, batch=64)
    uninterrupted, history = trained(settings, digits.load())
    for _ in training.train(net, digits.load(), settings, progress):
        pass
    assert same_parameters(net, uninterrupted)
    assert progress == history
