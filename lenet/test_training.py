"""Training from the command line: what it reaches, stopping and going on, and what it refuses."""

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lenet import Net, digits, feature_maps, oracle, training
from lenet.digits import Digits
from lenet.training import MAX_SEED, SGD_FORMS, CheckpointError, Epoch, Progress, Settings, train

SETTINGS = Settings(epochs=2, batch=64)


def first(data: Digits, count: int) -> Digits:
    """The first digits to train on and to test on."""
    train_part, test_part = (data.train_images, data.train_labels), (data.test_images, data.test_labels)
    return Digits(data.name, *(part[:count] for part in (*train_part, *test_part)))


def trained(settings: Settings, data: Digits) -> tuple[Net, Progress]:
    torch.manual_seed(settings.seed)
    net, progress = Net(), Progress()
    for _ in train(net, data, settings, progress):
        pass
    return net, progress


@pytest.fixture
def few() -> Digits:
    """Four batches of SETTINGS, the last of them smaller."""
    return first(digits.load(), 200)


def same(first: Net, second: Net) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_training_by_hand_and_by_the_optimizer_are_the_same_at_a_power_of_two(few: Digits) -> None:
    by_hand, history = trained(SETTINGS, few)
    by_optimizer, other = trained(replace(SETTINGS, optimizer="sgd"), few)

    assert same(by_hand, by_optimizer)
    assert history == other


def test_another_seed_trains_another_network(few: Digits) -> None:
    assert not same(trained(SETTINGS, few)[0], trained(replace(SETTINGS, seed=1), few)[0])


def test_a_batch_is_never_lost() -> None:
    indices = training.batches(100, Settings(batch=32), epoch=3)

    assert [len(batch) for batch in indices] == [32, 32, 32, 4]
    assert sorted(int(i) for batch in indices for i in batch) == list(range(100))


def test_an_epochs_loss_is_the_mean_over_its_images() -> None:
    """Of 10 images in batches of 4, 4 and 2, whose losses are 1, 2 and 3; and anew in the next epoch."""
    losses = iter([1.0, 2.0, 3.0, 1.0, 2.0, 3.0])
    settings = Settings(epochs=2, batch=4)

    *_, progress = train(Net(), first(digits.load(), 10), settings, step=lambda *_: torch.tensor(next(losses)))

    assert [epoch.loss for epoch in progress.history] == [(4 * 1 + 4 * 2 + 2 * 3) / 10] * 2
    assert (progress.step, progress.loss_sum) == (0, 0.0)


def test_accuracy_is_the_share_of_images_told_right() -> None:
    def scores(images: torch.Tensor) -> torch.Tensor:
        return torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, -4.0], [0.0, 0.0, 1.0], [5.0, 6.0, 0.0]])

    net = Net()
    net.forward = scores  # type: ignore[method-assign]

    assert training.accuracy(net, torch.zeros(4), torch.tensor([1, 0, 2, 0])) == 0.75


def test_each_form_of_the_optimizer_is_chosen_by_its_own_argument() -> None:
    chosen = {form: [name for name, choice in arguments.items() if choice] for form, arguments in SGD_FORMS.items()}

    assert chosen == {"for-loop": [], "foreach": ["foreach"], "fused": ["fused"]}
    assert SGD_FORMS["for-loop"] == {"foreach": False, "fused": False}


def test_the_largest_seed_is_what_numpy_takes() -> None:
    assert len(training.batches(10, Settings(seed=MAX_SEED), epoch=0)) == 1
    with pytest.raises(ValueError, match="Seed"):
        training.batches(10, Settings(seed=MAX_SEED + 1), epoch=0)


@pytest.mark.parametrize("stop", [1, 3, 4, 5])
def test_a_run_goes_on_bit_for_bit(tmp_path: Path, few: Digits, stop: int) -> None:
    """Stopped within the first epoch of 4 batches, just before, at and just after its end."""
    whole, history = trained(SETTINGS, few)
    data, path = few, tmp_path / "training.pt"
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


def test_the_other_optimizer_and_the_oracle_start_alike_and_see_the_same_batches(few: Digits) -> None:
    torch.manual_seed(SETTINGS.seed)
    parameters = {name: value.detach().double().numpy() for name, value in Net().named_parameters()}
    images, targets = few.train_images.double().numpy(), digits.one_hot(few.train_labels).double().numpy()
    order = [batch for epoch in range(2) for batch in training.batches(len(images), SETTINGS, epoch)]
    steps = ((images[batch], targets[batch]) for batch in order)
    copies, losses = oracle.train(parameters, steps, SETTINGS.lr, oracle.PRECISIONS["float32"])
    right = oracle.predict(copies, few.test_images.double().numpy()).value.argmax(axis=1) == few.test_labels.numpy()

    others = training.other_ways(few, SETTINGS)

    assert others.keys() == {"optim.SGD", "the oracle"}
    assert others["optim.SGD"] == trained(replace(SETTINGS, optimizer="sgd"), few)[1].history
    assert [len(batch) for batch in order] == [64, 64, 64, 8] * 2
    epochs = [float(np.average(part, weights=[64, 64, 64, 8])) for part in (losses[:4], losses[4:])]
    assert [epoch.loss for epoch in others["the oracle"]] == epochs
    assert others["the oracle"][-1].accuracy == right.mean()
    assert training.other_ways(few, replace(SETTINGS, optimizer="sgd")).keys() == {"by hand", "the oracle"}


def test_the_command_trains_records_and_will_not_lose_an_earlier_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--epochs", "1", "--checkpoint", str(tmp_path / "run.pt"), "--record", str(tmp_path), "--compare"]
    monkeypatch.setattr(sys, "argv", ["training.py", *command])

    assert training.main() == 0
    assert "of the test digits" in capsys.readouterr().out
    record = json.loads((tmp_path / "training.json").read_text())
    data, (net, settings, progress) = digits.load(), training.resume(tmp_path / "run.pt", digits.load())
    torch.manual_seed(0)
    for when, shown in (("before", Net()), ("after", net)):
        maps = feature_maps(shown, data.test_images[:1])
        assert record["feature_maps"][when] == {name: map_[0].tolist() for name, map_ in maps.items()}
    assert record["command"] == shlex.join(["python", "-m", "lenet.training", *command])
    assert record["settings"] == asdict(settings) == asdict(Settings(epochs=1))
    assert record["history"] == [asdict(epoch) for epoch in progress.history]
    assert [(way, len(history)) for way, history in record["others"].items()] == [("optim.SGD", 1), ("the oracle", 1)]
    assert record["history"][0]["accuracy"] == training.accuracy(net, data.test_images, data.test_labels)
    assert record["digit"] == {"label": int(data.test_labels[0]), "pixels": data.test_images[0, 0].tolist()}

    assert training.main(command) == 2
    assert "holds an earlier run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume", "--checkpoint", "none.pt"], "there is no such checkpoint"),
        (["--resume", "--lr", "0.1"], "was trained otherwise than with --lr 0.1"),
        (["--resume", "--epochs", "1"], "more than --epochs asks for"),
        (["--resume", "--lr", "0.1", "--seed", "0"], "was trained otherwise than with --lr 0.1\n"),
        (["--mnist", "nowhere"], "there is no such folder"),
        (["--checkpoint", "."], ". is a folder"),
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
    done = Progress(history=[Epoch(0.1, 0.2)] * SETTINGS.epochs)
    training.save(Path("training.pt"), Net(), digits.load(), SETTINGS, done)

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


def test_a_checkpoint_of_other_pixels_is_refused(tmp_path: Path) -> None:
    data = first(digits.load(), 10)
    pixels = data.train_images.clone()
    pixels[3, 0, 5, 5] += 0.5
    training.save(tmp_path / "training.pt", Net(), data, SETTINGS, Progress())

    with pytest.raises(CheckpointError, match="was trained on scikit-learn's digits, 10 images with checksum"):
        training.resume(tmp_path / "training.pt", replace(data, train_images=pixels))


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
            return Path.touch, (tmp_path / "ran",)

    torch.save(Code(), tmp_path / "training.pt")

    with pytest.raises(CheckpointError, match="not a checkpoint of this program"):
        training.resume(tmp_path / "training.pt", digits.load())

    assert not (tmp_path / "ran").exists()


def test_a_finished_run_goes_on_to_more_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], few: Digits
) -> None:
    """Of `--epochs` alone the checkpoint may be told another number; as many as are done is nothing to do."""
    monkeypatch.setattr(digits, "load", lambda mnist: few)
    path, settings = tmp_path / "run.pt", replace(SETTINGS, batch=16)
    net, progress = trained(settings, few)
    training.save(path, net, few, settings, progress)

    assert training.main(["--resume", "--checkpoint", str(path), "--epochs", "2"]) == 0
    assert "epoch 2:" not in capsys.readouterr().out
    assert training.main(["--resume", "--checkpoint", str(path), "--epochs", "3", "--lr", "0.5"]) == 0
    printed = capsys.readouterr().out

    reached = training.resume(path, few)[2]
    assert reached == trained(replace(settings, epochs=3), few)[1]
    first_one, last = reached.history[0], reached.history[2]
    assert f"{first_one.accuracy:.1%}" != f"{last.accuracy:.1%}"
    assert f"epoch 3: loss {last.loss:.4f}, accuracy {last.accuracy:.1%}" in printed
    assert f"{last.accuracy:.1%} of the test digits, loss {last.loss:.4f}, after 3 epochs" in printed


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", 1), ("batch", 1), ("lr", 0.0), ("seed", 0), ("seed", MAX_SEED), ("lr", float("inf"))],
)
def test_a_setting_at_the_end_of_its_range_is_taken(tmp_path: Path, name: str, value: float) -> None:
    options = training._options([f"--{name}", str(value), "--checkpoint", str(tmp_path / "run.pt")])

    assert getattr(options, name) == value
    assert not options.resume


def test_a_file_is_no_folder_to_record_in(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    for option, path in (("--record", tmp_path / "file"), ("--checkpoint", tmp_path / "file" / "run.pt")):
        with pytest.raises(SystemExit, match="2"):
            training.main([option, str(path)])


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
def test_a_setting_out_of_range_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        training.main(arguments)


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
    settings = Settings(epochs=len(progress.history) + 1, batch=64)
    whole, history = trained(settings, digits.load())
    for _ in train(net, digits.load(), settings, progress):
        pass
    assert same(net, whole)
    assert progress == history
