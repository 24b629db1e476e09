"""The `irpo` command. Parses arguments, calls one function, and turns errors into lines and exit codes.

Exit codes: 0 done; 2 the user's to mend (one line a mistake, no traceback); 1 a bug of ours (traceback); 130 and
143 interrupted.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import irpo_nemo
from irpo_nemo.config import GradingConfig, IRPOConfig, ParallelConfig
from irpo_nemo.config_files import load_config
from irpo_nemo.errors import ConfigError, IRPOError, MachineError
from irpo_nemo.launch.children import Interrupted, StageCrashed, die_with_launcher, send_failure
from irpo_nemo.model_shape import find_model_mistakes, read_hf_config
from irpo_nemo.pipeline import find_file_mistakes, find_missing_trackers, plan, refuse_changes
from irpo_nemo.run_folder import RunFolder
from irpo_nemo.supervision import accept_supervision

if TYPE_CHECKING:
    from irpo_nemo.sampling.parts import Shard

Number = TypeVar("Number", int, float)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that `arguments` (or the command line) names; return the exit code."""
    parsed = _parse(arguments)
    _log_our_lines()
    command: Callable[[argparse.Namespace], None] = parsed.command
    try:
        command(parsed)
    except IRPOError as error:
        if not send_failure(error):
            print(error, file=sys.stderr)
        return 2
    except StageCrashed as crash:
        print(crash, file=sys.stderr)
        return 1
    except KeyboardInterrupt as interruption:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 128 + (interruption.signum if isinstance(interruption, Interrupted) else 2)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output, such as `head`, has gone
        return 1
    except Exception as bug:
        send_failure(bug)
        raise
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _make_parser()
    parsed, rest = parser.parse_known_args(arguments)
    # Before Python 3.12.8 argparse takes no overrides that come after an option.
    if any(argument.startswith("-") for argument in rest) or (rest and "overrides" not in parsed):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        parsed.overrides = [*parsed.overrides, *rest]
    return parsed


def _log_our_lines() -> None:
    """Send our INFO lines to standard output; what libraries say stays on standard error, which goes to logs alone."""
    logger = logging.getLogger("irpo_nemo")
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler(sys.stdout))
    logger.propagate = False


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="irpo", description="Iterative Reasoning Preference Optimization.")
    parser.add_argument("--version", action="version", version=f"irpo-nemo {irpo_nemo.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace], None], description: str) -> argparse.ArgumentParser:
        subparser = commands.add_parser(name, help=description, description=description)
        subparser.set_defaults(command=command)
        return subparser

    for name, command, description in (
        ("run", _run, "The whole loop, or what is left of it."),
        (
            "plan",
            _plan,
            "The steps and their state; memory, time and goodput. Checks the configuration; starts nothing.",
        ),
    ):
        subparser = add(name, command, description)
        subparser.add_argument("config", metavar="CONFIG", help="a name in conf/, or the path of a YAML file")
        _add_overrides(subparser)
    stage = add("stage", _stage, "One stage, as launchers call it.")
    stage.add_argument(
        "stage", metavar="NAME", help="prepare, sft, sample, grade, pair, trial, select, train or report"
    )
    stage.add_argument("config", metavar="CONFIG")
    _add_overrides(stage)
    status = add("status", _status, "What is done, running, failed (and why), with progress.")
    status.add_argument("run_folder", metavar="RUN_DIR", type=Path)
    status.add_argument("--watch", action="store_true", help="again and again until the run is over")
    status.add_argument("--json", action="store_true", help="for scripts: one line")
    cancel = add("cancel", _cancel, "End the jobs of a run on Slurm; `irpo run` goes on from there.")
    cancel.add_argument("run_folder", metavar="RUN_DIR", type=Path)
    _add_report(add("report", _report, "Tables, charts and the page, of what is done so far."))
    show = add("show", _show, "One problem: prompt, gold answer, every candidate with its verdict, pairs.")
    show.add_argument("run_folder", metavar="RUN_DIR", type=Path)
    show.add_argument("problem_id", metavar="PROBLEM_ID")
    show.add_argument("--iteration", metavar="T", type=int, help="of M_T alone")
    track = add("track", _track, "What the trackers lack of a run, sent by hand: after a lost network, or offline.")
    track.add_argument("run_folder", metavar="RUN_DIR", type=Path)
    _add_overrides(track)
    _add_table(add("table", _table, "The runs of a table that are not done, and the table: one row a configuration."))
    _add_grading(add("grade", _grade, "Verdicts for a file of model outputs: rows with response and gold."))
    doctor = add("doctor", _doctor, "Is this environment fit, and what is missing; golden self-tests.")
    doctor.add_argument(
        "run_root", metavar="RUN_ROOT", nargs="?", type=Path, default=Path("runs"), help="where runs go"
    )
    _add_conversions(add("convert", _convert_to_hf, "Weights between Hugging Face folders and Megatron checkpoints."))
    return parser


def _add_table(table: argparse.ArgumentParser) -> None:
    table.add_argument("table", metavar="TABLE", help="a name in conf/tables/, or the path of a YAML file")
    mode = table.add_mutually_exclusive_group()
    mode.add_argument("--plan", action="store_true", help="print the runs as commands, and how long; start nothing")
    mode.add_argument("--show", action="store_true", help="the table of what is done so far; start nothing")
    table.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        help="seeds=0,1,2; folder=DIR for its runs (runs/table_NAME); and overrides of every run",
    )


def _add_report(report: argparse.ArgumentParser) -> None:
    report.add_argument("run_folders", metavar="RUN_DIR", type=Path, nargs="+", help="a run; with --compare several")
    report.add_argument("--compare", action="store_true", help="one table and one page of several runs")
    report.add_argument(
        "--output",
        metavar="FILE",
        type=Path,
        default=Path("comparison.html"),
        help="the page that --compare writes (%(default)s)",
    )


def _add_grading(grade: argparse.ArgumentParser) -> None:
    defaults = GradingConfig()
    grade.add_argument("--task", required=True, metavar="TASK", help="gsm8k, hendrycks_math or arc_challenge")
    grade.add_argument(
        "input", metavar="INPUT", type=Path, help="JSON lines, or .gz of them; ARC rows also have labels"
    )
    grade.add_argument("output", metavar="OUTPUT", type=Path, help="the same rows with answer, verdict and layer")
    grade.add_argument(
        "--workers", metavar="N", type=_positive(int), help="processes; one a processor core if not given"
    )
    grade.add_argument(
        "--deadline",
        metavar="SECONDS",
        type=_positive(float),
        default=defaults.deadline_seconds,
        help="processor time for one answer (%(default)g)",
    )
    grade.add_argument("--audit", action="store_true", help="add a second, independent grader's verdict")


def _positive(kind: type[Number]) -> Callable[[str], Number]:
    """Read a number above 0; argparse names the argument when it is none."""

    def read(text: str) -> Number:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    return read


def _add_conversions(parser: argparse.ArgumentParser) -> None:
    directions = parser.add_subparsers(required=True, metavar="DIRECTION")
    for name, command, paths, description in (
        ("to-megatron", _convert_to_megatron, ("hf_folder", "target"), "A Hugging Face folder to a checkpoint."),
        ("to-hf", _convert_to_hf, ("checkpoint", "source_hf", "target"), "A checkpoint to a Hugging Face folder."),
    ):
        direction = directions.add_parser(name, help=description, description=description)
        direction.set_defaults(command=command)
        for path in paths:
            direction.add_argument(path, metavar=path.upper(), type=Path)
        direction.add_argument("sizes", metavar="key=value", nargs="*", help="parallel.* sizes, under torchrun")


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="overrides, as Hydra knows them")


def _load_checked(parsed: argparse.Namespace) -> IRPOConfig:
    return load_config(parsed.config, parsed.overrides, also_check=find_file_mistakes)


def _run(parsed: argparse.Namespace) -> None:
    from irpo_nemo.launch.local import run_locally
    from irpo_nemo.launch.slurm.submit import refuse_live_jobs, run_on_slurm, show_chain
    from irpo_nemo.reporting.results import read_results
    from irpo_nemo.reporting.table import print_results

    config = _load_checked(parsed)
    folder = RunFolder(config.run_folder)
    if config.launcher.dry_run:
        show_chain(config)
        return
    if config.launcher.name == "slurm":
        did_something = run_on_slurm(config)
        if did_something:
            return
    else:
        refuse_live_jobs(folder)
        did_something = run_locally(config)
    print("all steps are done" if did_something else f"{config.run_folder}: everything is done already")
    print_results(read_results(folder))
    print(f"report: {folder.page}")


def _plan(parsed: argparse.Namespace) -> None:
    from irpo_nemo.launch.plan import print_estimate, print_plan

    print_estimate(load_config(parsed.config, parsed.overrides))  # needs neither the weights nor the problems
    config = _load_checked(parsed)
    steps = plan(config)
    print_plan(config, steps)
    refuse_changes(config, steps)


def _stage(parsed: argparse.Namespace) -> None:
    from irpo_nemo.sampling.mpi_launch import ending_launch
    from irpo_nemo.stages.frame import run_shard, run_stage

    die_with_launcher()
    accept_supervision()
    with ending_launch():
        iteration, overrides = _split_iteration(parsed.overrides)
        shard, overrides = _split_shard(overrides)
        config = load_config(parsed.config, overrides, also_check=find_model_mistakes)
        if shard is None:
            run_stage(config, parsed.stage, iteration)
        else:
            run_shard(config, parsed.stage, iteration, shard)


def _split_iteration(overrides: Sequence[str]) -> tuple[int | None, list[str]]:
    """Take iteration=T out of the overrides."""
    given = [override.removeprefix("iteration=") for override in overrides if override.startswith("iteration=")]
    if not given:
        return None, list(overrides)
    if not given[-1].isdecimal():
        raise ConfigError(f"iteration: is {given[-1]}, but a number is wanted, for example iteration=0")
    return int(given[-1]), [override for override in overrides if not override.startswith("iteration=")]


def _split_option(overrides: Sequence[str], name: str) -> tuple[str | None, list[str]]:
    """Take name=VALUE, which is no key of the configuration, out of the overrides; the last one counts."""
    given = [override.removeprefix(f"{name}=") for override in overrides if override.startswith(f"{name}=")]
    return (given[-1] if given else None), [o for o in overrides if not o.startswith(f"{name}=")]


def _split_shard(overrides: Sequence[str]) -> "tuple[Shard | None, list[str]]":
    """Take shard=I/N out of the overrides."""
    given = [override.removeprefix("shard=") for override in overrides if override.startswith("shard=")]
    if not given:
        return None, list(overrides)
    index, _, count = given[-1].partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ConfigError(f"shard: is {given[-1]}, but I/N with I from 0 to N - 1 is wanted, for example shard=0/4")
    rest = [override for override in overrides if not override.startswith("shard=")]
    from irpo_nemo.sampling.parts import Shard

    return Shard(int(index), int(count)), rest


def _load_run(folder: Path, overrides: Sequence[str] = ()) -> IRPOConfig:
    """The configuration of an existing run, wherever its folder stands now."""
    run = RunFolder(folder)
    if not run.config.is_file():
        raise ConfigError(f"{folder}: has no config.yaml, so it is not a run folder; wanted runs/NAME")
    whole = folder.resolve()
    config = load_config(str(run.config), overrides)
    config.run_root, config.name = str(whole.parent), whole.name
    return config


def _status(parsed: argparse.Namespace) -> None:
    from irpo_nemo.launch.status import print_status

    print_status(_load_run(parsed.run_folder), as_json=parsed.json, watch=parsed.watch)


def _cancel(parsed: argparse.Namespace) -> None:
    from irpo_nemo.launch.slurm.submit import cancel_chain

    folder = RunFolder(_load_run(parsed.run_folder).run_folder)
    count = cancel_chain(folder)
    print(f"{parsed.run_folder}: {f'cancelled {count} jobs' if count else 'no job waits or runs'}")


def _report(parsed: argparse.Namespace) -> None:
    from irpo_nemo.reporting.results import read_results
    from irpo_nemo.reporting.table import print_results
    from irpo_nemo.reporting.write import compare_runs, write_report

    configs = [_load_run(folder) for folder in parsed.run_folders]
    if parsed.compare:
        compare_runs(configs, parsed.output)
        print(f"comparison: {parsed.output}")
        return
    for config in configs:
        folder = RunFolder(config.run_folder)
        write_report(folder, config)
        print_results(read_results(folder))
        print(f"report: {folder.page}")


def _show(parsed: argparse.Namespace) -> None:
    from irpo_nemo.reporting.show import show_problem

    show_problem(_load_run(parsed.run_folder), parsed.problem_id, iteration=parsed.iteration)


def _track(parsed: argparse.Namespace) -> None:
    from irpo_nemo.tracking.mirror import mirror

    config = _load_run(parsed.run_folder, parsed.overrides)
    if not (config.tracking.wandb.enabled or config.tracking.mlflow.enabled):
        raise ConfigError(
            f"{parsed.run_folder}: its configuration names no tracker; "
            "add tracking.wandb.enabled=true or tracking.mlflow.enabled=true to this command"
        )
    if mistakes := list(find_missing_trackers(config)):
        raise ConfigError("\n".join(mistakes))
    num_points, failed = mirror(config, ended=lambda _: True, is_last=True)
    if failed:
        raise MachineError("\n".join(failed))
    print(f"{parsed.run_folder}: its {num_points} points are sent")


def _table(parsed: argparse.Namespace) -> None:
    from irpo_nemo.table import command

    seeds, overrides = _split_option(parsed.overrides, "seeds")
    folder, overrides = _split_option(overrides, "folder")
    plan = command.make_plan(parsed.table, folder=folder, seeds=seeds, options=overrides)
    if parsed.plan:
        command.print_plan(plan)
    elif parsed.show:
        command.show(plan)
    else:
        command.run(plan)


def _grade(parsed: argparse.Namespace) -> None:
    from irpo_nemo.grade_file import describe, grade_file

    config = GradingConfig(num_workers=parsed.workers, deadline_seconds=parsed.deadline, audit=parsed.audit)
    result = grade_file(parsed.task, parsed.input, parsed.output, config)
    if not result.num_graded_now:
        print(f"{parsed.output}: is graded already; delete it to grade again")
    for line in describe(result):
        print(line)


def _convert_to_megatron(parsed: argparse.Namespace) -> None:
    parallel = _read_parallel(parsed.sizes)
    read_hf_config(parsed.hf_folder)  # before the seconds that the imports take
    from irpo_nemo.training.conversion import convert_to_megatron

    convert_to_megatron(parsed.hf_folder, parsed.target, parallel=parallel)


def _convert_to_hf(parsed: argparse.Namespace) -> None:
    parallel = _read_parallel(parsed.sizes)
    read_hf_config(parsed.source_hf)
    from irpo_nemo.training.conversion import convert_to_hf

    convert_to_hf(parsed.checkpoint, parsed.source_hf, parsed.target, parallel=parallel)


def _read_parallel(sizes: Sequence[str]) -> ParallelConfig:
    """Read `parallel.<size>=N` arguments."""
    keys = {f"parallel.{name}": name for name in ("tensor_model_parallel_size", "pipeline_model_parallel_size")}
    values: dict[str, Any] = {}
    for argument in sizes:
        key, _, value = argument.partition("=")
        if key not in keys or not value.isdecimal() or int(value) < 1:
            raise ConfigError(f"{argument}: is no size; wanted {' or '.join(f'{name}=N' for name in keys)}")
        values[keys[key]] = int(value)
    return ParallelConfig(**values)


def _doctor(parsed: argparse.Namespace) -> None:
    from irpo_nemo.launch.doctor import examine_environment

    examine_environment(parsed.run_root)
