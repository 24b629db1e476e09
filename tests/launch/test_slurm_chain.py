"""The jobs that a plan becomes, and how their end is told. No cluster needed."""

from pathlib import Path

import pytest

from irpo_nemo.artifacts import write_json
from irpo_nemo.config import IRPOConfig
from irpo_nemo.config_files import load_config
from irpo_nemo.errors import ConfigError
from irpo_nemo.launch.slurm.chain import make_chain
from irpo_nemo.launch.slurm.follow import FollowedChain, FollowedJob, explain_stop
from irpo_nemo.launch.slurm.queue import Task
from irpo_nemo.launch.slurm.submit import Submitted
from irpo_nemo.pipeline import plan
from tests.test_pipeline import finish_until


def make_config(tmp_path: Path, *overrides: str) -> IRPOConfig:
    problems = ["task.arithmetic.num_train_problems=12", "task.arithmetic.num_test_problems=4"]
    parts = ["sampler.problems_per_part=4", "launcher.slurm.shards=4", "num_iterations=1"]
    return load_config("quickstart", [f"run_root={tmp_path}", "launcher=slurm", *problems, *parts, *overrides])


def describe(config: IRPOConfig) -> list[tuple[str, str, list[str], int]]:
    return [
        (job.name, job.kind, [step.stage for step in job.steps], len(job.shards))
        for job in make_chain(config, plan(config))
    ]


def test_neighbours_share_a_job_and_sampling_is_an_array(tmp_path: Path) -> None:
    assert describe(make_config(tmp_path)) == [
        ("prepare", "cpu", ["prepare"], 0),
        ("sft", "trainer", ["sft"], 0),
        ("sample_00", "sampler", ["sample"], 4),
        ("grade_00", "cpu", ["sample", "grade", "pair"], 0),
        ("train_00", "trainer", ["train"], 0),
        ("sample_01", "sampler", ["sample"], 4),
        ("grade_01", "cpu", ["sample", "grade", "report"], 0),
    ]


def test_one_shard_is_no_array(tmp_path: Path) -> None:
    jobs = describe(make_config(tmp_path, "launcher.slurm.shards=1"))
    assert jobs[2:4] == [("sample_00", "sampler", ["sample"], 0), ("grade_00", "cpu", ["grade", "pair"], 0)]


def test_what_is_done_is_not_submitted_and_of_an_array_only_what_is_missing(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    sample = next(step for step in finish_until(config, "iteration 0 sample") if step.state == "ready")
    write_json(sample.ticket, {})
    samples = sample.manifest.parent / "samples"
    for part in ("train/part-00000", "train/part-00002", "test/part-00000"):
        (samples / f"{part}.parquet").parent.mkdir(parents=True, exist_ok=True)
        (samples / f"{part}.parquet").touch()
    first = make_chain(config, plan(config))[0]
    assert (first.name, first.shards) == ("sample_00", (1,))
    (samples / "train/part-00001.parquet").touch()
    assert describe(config)[0] == ("grade_00", "cpu", ["sample", "grade", "pair"], 0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["launcher=local", "launcher.dry_run=true"], "launcher.dry_run: is true, but launcher.name is local"),
        (["launcher.slurm.trainer.nodes=3"], "launcher.ranks: is 2, but must be a multiple of launcher.slurm.trainer"),
        (["launcher.slurm.trainer.gpus_per_node=8"], "launcher.ranks: is 2, but launcher.slurm.trainer.nodes x gpus_"),
        (["launcher.slurm.cpu.image=x"], "launcher.slurm.cpu.image: is x, but launcher.slurm.container is none"),
        (["launcher.slurm.cpu.sbatch_lines=[x]"], "launcher.slurm.cpu.sbatch_lines: is 'x', but an option is wanted"),
        (["++launcher.slurm.environment={a-b: 1}"], "launcher.slurm.environment: 'a-b' is no name of an environment"),
        (["name='50%'"], "name: run_root/name is "),
        (["launcher.slurm.account='a\tb'"], "launcher.slurm.account: is 'a\\tb', but must hold printable characters"),
    ],
)
def test_a_mistake_about_slurm_is_one_line(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_config(tmp_path, *overrides)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"quickstart: {message}")


def followed(name: str, steps: list[tuple[str, int | None]], state: str | None, *, reason: str = "") -> FollowedJob:
    job = Submitted(name=name, kind="trainer", steps=[list(step) for step in steps], shards=0, job_id=7)
    tasks = [Task(job_id=7, tasks="", state=state, reason="", elapsed="0:01", nodes="node1")] if state else []
    return FollowedJob(job=job, tasks=tasks, reasons=[reason] if reason else [], before="", logs="logs/x.log")


@pytest.mark.parametrize(
    ("state", "reason", "said"),
    [
        ("RUNNING", "", ""),
        ("PENDING", "", ""),
        ("FAILED", "failed 3 times in a row", "sft (job 7) failed 3 times in a row"),
        ("FAILED", "", "sft (job 7) ended with a failure and left no reason; see logs/x.log"),
        ("CANCELLED", "", "sft (job 7) was cancelled"),
        (
            "TIMEOUT",
            "",
            "sft (job 7) reached its time limit before it could save; raise launcher.slurm.trainer.time or "
            ".notice_seconds",
        ),
        (None, "", "sft (job 7) is gone from Slurm's memory and left no reason; see logs/x.log"),
    ],
)
def test_a_stop_is_told_once_by_the_first_job_that_cannot_go_on(
    tmp_path: Path, state: str | None, reason: str, said: str
) -> None:
    config = make_config(tmp_path)
    steps = finish_until(config, "sft")
    jobs = [
        followed("prepare", [("prepare", None)], "COMPLETED"),
        followed("sft", [("sft", None)], state, reason=reason),
        followed("sample_00", [("sample", 0)], "CANCELLED" if said else "PENDING"),
    ]
    open_steps = [step for step in steps if step.state != "done"]
    assert explain_stop(FollowedChain(jobs=jobs, trouble=""), open_steps, tmp_path) == said
