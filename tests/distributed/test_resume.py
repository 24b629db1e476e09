"""A killed training run ends as if it had never been killed: exported weights and metrics, bit for bit.

SIGKILL hits in step 3, after the checkpoint of step 2; the run goes on in new processes. Where the tests count
checkpoints, these are written in the foreground.
"""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from irpo_nemo.config import IRPOConfig
from tests.distributed.sessions import Moment, Session, make_session
from tests.training.tiny import make_config, make_model_folder

LAYOUTS: dict[str, dict[str, Any]] = {
    "tp1": {"ranks": 1},
    "tp2": {"ranks": 2, "tensor": 2},
    "pp2": {"ranks": 2, "pipeline": 2},
    "pp2_virtual2": {"ranks": 2, "pipeline": 2, "virtual": 2},
    "cp2": {"ranks": 2, "context": 2},
    "dp2": {"ranks": 2, "use_distributed_optimizer": False},
    "dp2_distributed_optimizer": {"ranks": 2, "overlap": True},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("resume") / "model")


def config_of(layout: str) -> tuple[IRPOConfig, int]:
    options = dict(LAYOUTS[layout])
    ranks = options.pop("ranks")
    return make_config(checkpoint_every_steps=2, **{"async_checkpoints": False} | options), ranks


@pytest.fixture(scope="module")
def uninterrupted(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Session]:
    sessions = {}
    for layout in LAYOUTS:
        config, ranks = config_of(layout)
        sessions[layout] = make_session(tmp_path_factory.mktemp(layout), model=model)
        counts = sessions[layout].run(config, ranks)
        assert counts == {"steps": 5, "examples": 21, "first_step": 0}
    return sessions


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_killed_run_ends_bit_for_bit_like_one_that_was_not(
    uninterrupted: dict[str, Session], layout: str, model: Path, tmp_path: Path
) -> None:
    config, ranks = config_of(layout)
    session = make_session(tmp_path, model=model)
    session.run_until_killed(config, ranks, step=3)
    assert [line["step"] for line in session.metrics] == [0, 1, 2]
    assert session.checkpoints == ["step_00000002"]
    assert session.run(config, ranks)["first_step"] == 2
    assert session.weights == uninterrupted[layout].weights
    assert session.metrics == uninterrupted[layout].metrics


@pytest.mark.parametrize(
    ("layout", "signum"), [("tp1", signal.SIGTERM), ("tp2", signal.SIGUSR1), ("dp2", signal.SIGTERM)]
)
def test_a_signal_to_one_rank_saves_on_all_of_them(
    uninterrupted: dict[str, Session], layout: str, signum: int, model: Path, tmp_path: Path
) -> None:
    """In step 2, between two checkpoints: nothing is lost, not even that step."""
    config, ranks = config_of(layout)
    session = make_session(tmp_path, model=model)
    assert session.run_until_signal(config, ranks, step=2, signum=signum) == [128 + signum] * ranks
    assert session.checkpoints[-1] == "step_00000003"
    assert session.run(config, ranks)["first_step"] == 3
    assert session.weights == uninterrupted[layout].weights
    assert session.metrics == uninterrupted[layout].metrics


@pytest.mark.parametrize("moment", ["write", "publish", "link"])
@pytest.mark.parametrize(("layout", "in_background"), [("tp1", False), ("dp2_distributed_optimizer", True)])
def test_a_kill_within_a_checkpoint_leaves_the_one_before(
    uninterrupted: dict[str, Session], layout: str, in_background: bool, moment: Moment, model: Path, tmp_path: Path
) -> None:
    config, ranks = config_of(layout)
    config.training.async_checkpoints = in_background
    session = make_session(tmp_path, model=model)
    session.run_until_killed(config, ranks, step=4, moment=moment)
    assert session.checkpoints == ["step_00000002", "step_00000004" if moment == "link" else "step_00000004.tmp"]
    assert session.latest == "step_00000002"
    (session.folder.train.checkpoints / "step_00000009.tmp").mkdir()
    assert session.run(config, ranks)["first_step"] == 2
    assert session.checkpoints == ["step_00000004", "step_00000005"]
    assert session.latest == "step_00000005"
    assert session.weights == uninterrupted[layout].weights
    assert session.metrics == uninterrupted[layout].metrics


@pytest.mark.parametrize(
    ("step", "layout"), [(1, "tp1"), (2, "dp2"), (3, "tp2"), (3, "pp2"), (4, "dp2_distributed_optimizer")]
)
def test_checkpoints_written_in_the_background_resume_bit_for_bit(
    uninterrupted: dict[str, Session], layout: str, step: int, model: Path, tmp_path: Path
) -> None:
    """Killed in any step, with a checkpoint of every step, of which the last may be complete or not."""
    config, ranks = config_of(layout)
    config.training.async_checkpoints, config.training.checkpoint_every_steps = True, 1
    session = make_session(tmp_path, model=model)
    session.run_until_killed(config, ranks, step=step)
    assert session.run(config, ranks)["first_step"] in (step - 1, step)
    assert session.weights == uninterrupted[layout].weights
    assert session.metrics == uninterrupted[layout].metrics
    assert session.checkpoints == ["step_00000004", "step_00000005"]


def test_training_goes_on_while_a_checkpoint_is_written(
    uninterrupted: dict[str, Session], model: Path, tmp_path: Path
) -> None:
    """No file of step 2 is written before step 3 is over, so the checkpoint must hold a copy."""
    config, ranks = config_of("dp2_distributed_optimizer")
    config.training.async_checkpoints, config.training.keep_checkpoints = True, 9
    session = make_session(tmp_path, model=model)
    for written, complete in session.run_with_slow_checkpoint(config, ranks, step=2, until=3):
        assert 3 <= written <= complete <= 4
    (session.folder.train.checkpoints / "latest").unlink()
    (session.folder.train.checkpoints / "latest").symlink_to("step_00000002")
    assert session.run(config, ranks)["first_step"] == 2
    assert session.weights == uninterrupted["dp2_distributed_optimizer"].weights


def test_a_finished_run_trains_no_further(uninterrupted: dict[str, Session], model: Path, tmp_path: Path) -> None:
    config, ranks = config_of("tp1")
    session = make_session(tmp_path, model=model)
    session.run(config, ranks)
    before = session.folder.train.metrics.read_text()
    assert session.run(config, ranks)["first_step"] == 5
    assert session.folder.train.metrics.read_text() == before
    assert session.weights == uninterrupted["tp1"].weights


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("tp2", "tp1"),
        ("tp1", "pp2"),
        ("pp2", "dp2_distributed_optimizer"),
        ("pp2_virtual2", "cp2"),
        ("dp2_distributed_optimizer", "pp2_virtual2"),
    ],
)
def test_a_run_goes_on_in_another_layout(
    uninterrupted: dict[str, Session], before: str, after: str, model: Path, tmp_path: Path
) -> None:
    session = make_session(tmp_path, model=model)
    session.run_until_killed(*config_of(before), step=3)
    session.run(*config_of(after))
    found, expected = (
        torch.tensor([line["loss/total"] for line in metrics], dtype=torch.float64)
        for metrics in (session.metrics, uninterrupted["tp1"].metrics)
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0.0)


def test_a_checkpoint_of_other_pairs_is_refused(model: Path, tmp_path: Path) -> None:
    config, _ = config_of("tp1")
    session = make_session(tmp_path, model=model)
    session.run(config)
    make_session(tmp_path, model=model, num_pairs=20)
    with pytest.raises(AssertionError) as caught:
        session.run(config)
    checkpoints = session.folder.train.checkpoints
    assert f"ArtifactError: {checkpoints}/step_00000005: was made from other training data (digest " in str(
        caught.value
    )
    assert f"Delete {checkpoints.parent} to train again." in str(caught.value)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_first_step_is_at_ln_2(uninterrupted: dict[str, Session], layout: str) -> None:
    first = uninterrupted[layout].metrics[0]
    assert first["loss/dpo"] == pytest.approx(0.6931471805599453, abs=1e-6)
    assert first["reward/margin"] == pytest.approx(0.0, abs=1e-5)
