"""The scripts of every configuration, as they were when somebody last looked at them. No cluster needed."""

import shutil
import subprocess
from pathlib import Path

import pytest

from irpo_nemo.config_files import load_config
from irpo_nemo.launch.slurm.chain import make_chain
from irpo_nemo.launch.slurm.scripts import render_script, template_root
from irpo_nemo.pipeline import plan
from tests.slurm.golden import CASES, EVERY_OPTION, GOLDEN, render


@pytest.mark.parametrize("case", CASES)
def test_scripts_are_the_golden_ones(case: str, tmp_path: Path) -> None:
    """After a change that is meant: python -m tests.slurm.golden, and look at the difference."""
    assert render(case, tmp_path) == (GOLDEN / f"{case}.txt").read_text(encoding="utf-8")


def test_there_is_no_golden_file_too_many() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(CASES)


@pytest.fixture(scope="module")
def shellcheck() -> str:
    found = shutil.which("shellcheck")
    if found is None:
        pytest.skip("shellcheck is not installed")
    return found


def test_shell_scripts_have_no_findings(shellcheck: str, tmp_path: Path) -> None:
    repository = Path(__file__).resolve().parents[2]
    scripts = [template_root() / "supervise.sh", *repository.glob("tools/*.sh")]
    config = load_config(EVERY_OPTION, [f"run_root={tmp_path}"])
    for job in make_chain(config, plan(config)):
        scripts.append(tmp_path / f"{job.name}.sbatch")
        scripts[-1].write_text(render_script(config, job, working_directory=tmp_path))
    done = subprocess.run(
        [shellcheck, "--external-sources", "--source-path=SCRIPTDIR", *map(str, scripts)],
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.returncode) == ("", 0)


def test_awkward_values_reach_the_job_as_they_are(tmp_path: Path) -> None:
    """Bash itself reads the script up to where Slurm is needed."""
    config = load_config(EVERY_OPTION, [f"run_root={tmp_path}", "launcher.slurm.prologue=[]"])
    job = make_chain(config, plan(config))[1]
    script = render_script(config, job, working_directory=tmp_path)
    head, _, tail = script.partition("\nsource ")
    stage = next(line for line in tail.splitlines() if line.startswith("all_ranks"))
    probe = (
        """all_ranks() { printf '%s\\0' "$@"; }\n"""
        + stage
        + """\nprintf '%s\\0' "$IRPO_RUN" "$GREETING" "$PWD" "${STEP[@]}"\n"""
    )
    said = subprocess.run(["bash", "-c", f"{head}\n{probe}"], capture_output=True, text=True, check=True).stdout
    name, config_path, run, greeting, working_directory, *step = said.split("\0")[:-1]
    assert (name, config_path) == ("sft", f"{run}/config.yaml")
    assert run == f'{tmp_path}/it\'s "a"; $(run) `100 #`'
    assert greeting == """it's "all"; $HOME `x`"""
    assert working_directory == str(tmp_path)
    assert f"--container-mounts=/models:/models,/data/a b:/data,{tmp_path}:{tmp_path},{run}:{run}" in step
