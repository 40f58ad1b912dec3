"""Training from the command line: what it reaches, stopping and going on, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lenet import Net, digits, training
from lenet.training import CheckpointError, Progress, Settings, train

SETTINGS = Settings(epochs=2, batch=64)


def trained(settings: Settings) -> tuple[Net, Progress]:
    torch.manual_seed(settings.seed)
    net, progress = Net(), Progress()
    for _ in train(net, digits.load(), settings, progress):
        pass
    return net, progress


def same(first: Net, second: Net) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_training_by_hand_and_by_the_optimizer_are_the_same_at_a_power_of_two() -> None:
    by_hand, history = trained(SETTINGS)
    by_optimizer, other = trained(Settings(epochs=2, batch=64, optimizer="sgd"))

    assert same(by_hand, by_optimizer)
    assert history == other


def test_another_seed_trains_another_network() -> None:
    assert not same(trained(SETTINGS)[0], trained(Settings(epochs=2, batch=64, seed=1))[0])


def test_a_batch_is_never_lost() -> None:
    indices = training.batches(100, Settings(batch=32), epoch=3)

    assert [len(batch) for batch in indices] == [32, 32, 32, 4]
    assert sorted(int(i) for batch in indices for i in batch) == list(range(100))


@pytest.mark.parametrize("stop", [1, 22, 23, 24])
def test_a_run_goes_on_bit_for_bit(tmp_path: Path, stop: int) -> None:
    """Stopped within the first epoch of 23 batches, just before, at and just after its end."""
    whole, history = trained(SETTINGS)
    data, path = digits.load(), tmp_path / "training.pt"
    torch.manual_seed(SETTINGS.seed)
    net, progress = Net(), Progress()
    for done, _ in enumerate(train(net, data, SETTINGS, progress), start=1):
        if done == stop:
            break
    training.save(path, net, data, SETTINGS, progress)

    net, settings, progress = training.resume(path, data)
    for _ in train(net, data, settings, progress):
        pass

    assert settings == SETTINGS
    assert same(net, whole)
    assert progress == history


def test_ctrl_c_leaves_a_checkpoint_to_go_on_from(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lenet.training", "--batch", "64", "--checkpoint", str(tmp_path / "run.pt")]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # more threads sum in another order
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
    assert "go on with --resume" in rest
    net, settings, progress = training.resume(tmp_path / "run.pt", digits.load())
    whole, history = trained(Settings(epochs=len(progress.history) + 1, batch=64))
    settings = Settings(epochs=len(progress.history) + 1, batch=64)
    for _ in train(net, digits.load(), settings, progress):
        pass
    assert same(net, whole)
    assert progress == history


def test_the_command_trains_records_and_will_not_lose_an_earlier_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--epochs", "1", "--checkpoint", str(tmp_path / "run.pt"), "--record", str(tmp_path)]

    assert training.main(command) == 0
    assert "of the test digits" in capsys.readouterr().out
    record = json.loads((tmp_path / "training.json").read_text())
    assert len(record["history"]) == 1
    assert [len(record["feature_maps"]["after"][name]) for name in ("conv1", "conv2")] == [6, 16]

    assert training.main(command) == 2
    assert "holds an earlier run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume", "--checkpoint", "none.pt"], "there is no such checkpoint"),
        (["--resume", "--lr", "0.1"], "was trained otherwise than with --lr 0.1"),
        (["--resume", "--epochs", "1"], "more than --epochs asks for"),
        (["--mnist", "nowhere"], "there is no such folder"),
    ],
)
def test_what_cannot_be_done_is_one_clear_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    training.save(Path("training.pt"), Net(), digits.load(), SETTINGS, trained(SETTINGS)[1])

    assert training.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04torn"])
def test_a_torn_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "training.pt"
    path.write_bytes(content)

    with pytest.raises(CheckpointError, match="not a checkpoint of this program"):
        training.resume(path, digits.load())


@pytest.mark.parametrize("arguments", [["--epochs", "0"], ["--batch", "-1"], ["--lr", "nan"], ["--optimizer", "adam"]])
def test_a_setting_out_of_range_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        training.main(arguments)
