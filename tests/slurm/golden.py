"""What every configuration looks like on Slurm. Write the files anew with: python -m tests.slurm.golden"""

import json
import tempfile
from pathlib import Path

from irpo_nemo.config_files import config_names, load_config
from irpo_nemo.launch.slurm.chain import make_chain
from irpo_nemo.launch.slurm.scripts import render_script
from irpo_nemo.launch.slurm.submit import describe_chain
from irpo_nemo.pipeline import plan
from tests.test_conf_files import NEEDED

GOLDEN = Path(__file__).parent / "golden"

SHAPE = {
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "intermediate_size": 28672,
}

EVERY_OPTION = str(Path(__file__).with_name("every_option.yaml"))

CASES: dict[str, tuple[str, tuple[str, ...]]] = {name: (name, ("launcher=slurm",)) for name in config_names()} | {
    "every_option": (EVERY_OPTION, ()),
    "apptainer": (
        EVERY_OPTION,
        ("name=sif", "launcher.slurm.container=apptainer", "launcher.slurm.launch=torchrun", "launcher.slurm.shards=1"),
    ),
}
"""Configuration and overrides."""


def render(case: str, folder: Path) -> str:
    """The scripts of a case up to the first training, and its dependencies; `folder` gets a model and problem files."""
    config_name, overrides = CASES[case]
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model" / "config.json").write_text(json.dumps(SHAPE))
    files = []
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text('{"question": "2 + 2?", "answer": "#### 4"}\n')
        files.append(f"task.{split}_path={folder}/{split}.jsonl")
    needed = [item for item in NEEDED.get(config_name, ()) if not item.startswith("task.")]
    config = load_config(
        config_name,
        [
            "run_root=/runs",
            "launcher.slurm.python=python",
            *needed,
            *(files if config_name in NEEDED else ()),
            *overrides,
        ],
    )
    if config.model.path is not None:
        config.model.path = str(folder / "model")
    chain = make_chain(config, plan(config))
    first_training = next(index for index, job in enumerate(chain) if job.name.startswith("train"))
    scripts = [render_script(config, job, working_directory=Path("/home/me")) for job in chain[: first_training + 1]]
    return "\n".join([*scripts, describe_chain(config, chain, job_ids=[])]) + "\n"


def main() -> None:
    """Write every golden file."""
    GOLDEN.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            (GOLDEN / f"{case}.txt").write_text(render(case, Path(folder)), encoding="utf-8")


if __name__ == "__main__":
    main()
