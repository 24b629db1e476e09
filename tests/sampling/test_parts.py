import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from irpo_nemo.artifacts import list_parts, read_parts, read_records
from irpo_nemo.config import IRPOConfig
from irpo_nemo.errors import ArtifactError, MachineError
from irpo_nemo.records import Candidate
from irpo_nemo.sampling import Completion, Sampler, SamplingRequest, open_sampler
from irpo_nemo.sampling.counts import SamplingCounts
from irpo_nemo.sampling.part_statistics import (
    PartStatistics,
    Speed,
    measure_speed,
    read_statistics,
    time_of_others,
)
from irpo_nemo.sampling.parts import WHOLE, Shard, sample_split
from irpo_nemo.sampling.split_settings import Split, SplitSettings, derive_seed
from irpo_nemo.tasks import load_task
from irpo_nemo.tokenization import decode, encode_completion, load_tokenizer
from tests.sampling.conftest import make_config


class CountingSampler:
    """A real sampler that counts what it is asked for, and breaks when it is told to."""

    def __init__(self, sampler: Sampler, *, break_after: int | None = None) -> None:
        self._sampler = sampler
        self._break_after = break_after
        self.window = sampler.window
        self.honours_seeds = sampler.honours_seeds
        self.num_requests = 0
        self.num_calls = 0

    def generate(self, requests: Sequence[SamplingRequest]) -> list[Completion]:
        if self.num_calls == self._break_after:
            raise KeyboardInterrupt
        self.num_calls += 1
        self.num_requests += len(requests)
        return self._sampler.generate(requests)

    def close(self) -> None:
        self._sampler.close()


Sample = Callable[..., SamplingCounts]


@pytest.fixture
def sample(model_folder: Path) -> Sample:
    """`sample_split` with the tiny model; what is not said takes its value from `make_config`."""
    engine = open_sampler(make_config(), model_folder)
    tokenizer = load_tokenizer(model_folder, trust_remote_code=False)

    def run(
        folder: Path,
        *,
        config: IRPOConfig | None = None,
        split: Split = "train",
        iteration: int = 0,
        model_hash: str = "a" * 64,
        sampler: Sampler | None = None,
        shard: Shard = WHOLE,
        statistics: Path | None = None,
        on_progress: Callable[[int, int, float], None] | None = None,
    ) -> SamplingCounts:
        config = config or make_config()
        return sample_split(
            lambda: sampler or engine,
            tokenizer,
            load_task(config),
            config,
            iteration=iteration,
            split=split,
            folder=folder,
            model_hash=model_hash,
            shard=shard,
            statistics=statistics,
            on_progress=on_progress,
        )

    return run


def read(folder: Path) -> list[Candidate]:
    return list(read_parts(folder, Candidate))


def test_train_split_has_n_samples_a_problem_in_task_order(sample: Sample, tmp_path: Path) -> None:
    counts = sample(tmp_path)
    candidates = read(tmp_path)
    problems = [problem.problem_id for problem in load_task(make_config()).train_problems()]
    assert [made.candidate_id for made in candidates] == [f"{p}/sample/{i}" for p in problems for i in range(3)]
    assert {made.model_hash for made in candidates} == {"a" * 64}
    assert [len(read_records(part, Candidate)) for part in list_parts(tmp_path)] == [12, 12, 6]
    assert (counts.problems, counts.completions) == (10, 30)
    assert counts.tokens == sum(len(made.token_ids) for made in candidates)
    assert counts.truncated == sum(made.finish_reason == "length" for made in candidates)


def test_test_split_has_one_greedy_completion_and_the_samples(sample: Sample, tmp_path: Path) -> None:
    assert sample(tmp_path, split="test").completions == 18
    ids = [made.candidate_id for made in read(tmp_path)]
    problems = [problem.problem_id for problem in load_task(make_config()).test_problems()]
    assert ids == [f"{p}/{rest}" for p in problems for rest in ("greedy/0", "sample/0", "sample/1")]


def test_evaluation_without_samples_is_greedy_alone(sample: Sample, tmp_path: Path) -> None:
    config = make_config()
    config.evaluation.num_samples = 0
    sample(tmp_path, config=config, split="test")
    assert {made.kind for made in read(tmp_path)} == {"greedy"}


def test_gold_solutions_come_last_and_are_not_counted(sample: Sample, tmp_path: Path, model_folder: Path) -> None:
    config = make_config()
    config.pairing.gold_solutions = True
    assert sample(tmp_path, config=config).completions == 30
    tokenizer = load_tokenizer(model_folder, trust_remote_code=False)
    candidates = read(tmp_path)
    for problem, gold in zip(load_task(config).train_problems(), candidates[3::4], strict=True):
        assert gold.candidate_id == f"{problem.problem_id}/gold/0"
        assert (gold.text, gold.finish_reason) == (problem.solution, "stop")
        assert gold.token_ids == encode_completion(tokenizer, problem.solution or "")
        assert decode(tokenizer, gold.prompt_token_ids) == load_task(config).prompt(problem)
    assert sum(made.kind == "gold" for made in candidates) == 10


def test_text_is_the_token_ids_decoded(sample: Sample, tmp_path: Path, model_folder: Path) -> None:
    sample(tmp_path)
    tokenizer = load_tokenizer(model_folder, trust_remote_code=False)
    assert all(made.text == decode(tokenizer, made.token_ids) for made in read(tmp_path))


def test_a_part_sampled_again_is_the_same_to_the_byte(sample: Sample, tmp_path: Path) -> None:
    sample(tmp_path)
    before = {part.name: part.read_bytes() for part in list_parts(tmp_path)}
    list_parts(tmp_path)[1].unlink()
    counts = sample(tmp_path)
    assert {part.name: part.read_bytes() for part in list_parts(tmp_path)} == before
    assert (counts.completions, counts.completions_resumed) == (30, 18)


def test_what_was_interrupted_is_resumed_and_nothing_is_sampled_twice(
    sample: Sample, tmp_path: Path, model_folder: Path
) -> None:
    engine = open_sampler(make_config(), model_folder)
    with pytest.raises(KeyboardInterrupt):
        sample(tmp_path / "broken", sampler=CountingSampler(engine, break_after=1))
    rest = CountingSampler(engine)
    resumed = sample(tmp_path / "broken", sampler=rest)
    whole = sample(tmp_path / "whole")
    assert rest.num_requests == 18
    assert read(tmp_path / "broken") == read(tmp_path / "whole")
    assert (resumed.completions, resumed.tokens, resumed.truncated) == (
        whole.completions,
        whole.tokens,
        whole.truncated,
    )
    nothing = CountingSampler(engine)
    assert sample(tmp_path / "whole", sampler=nothing).tokens_per_second == 0
    assert nothing.num_requests == 0


def test_part_size_does_not_change_completions(sample: Sample, tmp_path: Path) -> None:
    sample(tmp_path / "four")
    sample(tmp_path / "seven", config=make_config(problems_per_part=7))
    assert read(tmp_path / "four") == read(tmp_path / "seven")


def test_more_candidates_keep_the_first(sample: Sample, tmp_path: Path) -> None:
    sample(tmp_path / "three")
    config = make_config()
    config.sampling.num_candidates = 5
    sample(tmp_path / "five", config=config)
    assert [made for made in read(tmp_path / "five") if made.index < 3] == read(tmp_path / "three")


def test_other_iterations_splits_and_seeds_draw_other_numbers() -> None:
    config = make_config()
    settings = SplitSettings.of(config, iteration=0, split="train", model_hash="")
    others = [
        SplitSettings.of(config, iteration=1, split="train", model_hash=""),
        SplitSettings.of(config, iteration=0, split="test", model_hash=""),
    ]
    seeds = [derive_seed(these, "p/sample/0") for these in [settings, *others]] + [derive_seed(settings, "p/sample/1")]
    config.seed = 1
    seeds.append(derive_seed(SplitSettings.of(config, iteration=0, split="train", model_hash=""), "p/sample/0"))
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**64 for seed in seeds)


def test_settings_are_those_of_the_split_and_iteration() -> None:
    config = make_config()
    train = [SplitSettings.of(config, iteration=t, split="train", model_hash="").temperature for t in range(3)]
    test = SplitSettings.of(config, iteration=2, split="test", model_hash="")
    assert train == [0.8, 1.3, 1.3]
    assert (test.temperature, test.num_greedy, test.num_samples, test.gold_solutions) == (0.9, 1, 2, False)


def test_progress_is_told_after_each_part(sample: Sample, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []

    def note(done: int, total: int, tokens_per_second: float) -> None:
        assert tokens_per_second > 0
        calls.append((done, total))

    sample(tmp_path, on_progress=note)
    assert calls == [(12, 30), (24, 30), (30, 30)]


def test_parts_of_another_model_are_refused(sample: Sample, tmp_path: Path) -> None:
    sample(tmp_path)
    with pytest.raises(ArtifactError) as error:
        sample(tmp_path, model_hash="b" * 64)
    assert str(error.value) == (
        f"{tmp_path}: was sampled with model_hash={'a' * 64}, but this run has {'b' * 64}. "
        "Delete the folder to sample again."
    )


def test_a_part_of_another_model_is_refused_without_the_note_beside_it(sample: Sample, tmp_path: Path) -> None:
    sample(tmp_path / "a")
    sample(tmp_path / "b", model_hash="b" * 64)
    list_parts(tmp_path / "a")[0].replace(list_parts(tmp_path / "b")[0])
    with pytest.raises(ArtifactError) as error:
        sample(tmp_path / "b", model_hash="b" * 64)
    assert str(error.value) == (
        f"{list_parts(tmp_path / 'b')[0]}: was sampled from model aaaaaaaaaaaa, but this iteration starts from "
        f"bbbbbbbbbbbb. Delete {tmp_path / 'b'} to sample again."
    )


def test_parts_with_other_settings_are_refused(sample: Sample, tmp_path: Path) -> None:
    sample(tmp_path)
    config = make_config()
    config.sampling.temperature = [1.0]
    with pytest.raises(ArtifactError, match=r"was sampled with temperature=0\.8, but this run has 1\.0\."):
        sample(tmp_path, config=config)


def test_parts_with_other_prompts_are_refused(sample: Sample, tmp_path: Path) -> None:
    sample(tmp_path)
    config = make_config()
    config.task.prompt_template = "{question}"
    with pytest.raises(ArtifactError) as error:
        sample(tmp_path, config=config)
    assert str(error.value) == (
        f"{list_parts(tmp_path)[0]}: holds other problems or prompts than the task. Delete {tmp_path} to sample again."
    )


def test_settings_may_change_while_there_are_no_parts(sample: Sample, tmp_path: Path, model_folder: Path) -> None:
    engine = open_sampler(make_config(), model_folder)
    with pytest.raises(KeyboardInterrupt):
        sample(tmp_path, sampler=CountingSampler(engine, break_after=0))
    assert sample(tmp_path, model_hash="b" * 64).completions == 30


class FailingSampler:
    """Cannot draw some candidates."""

    window = 0
    honours_seeds = True

    def __init__(self, sampler: Sampler, failing: set[str]) -> None:
        self._sampler = sampler
        self._failing = failing

    def generate(self, requests: Sequence[SamplingRequest]) -> list[Completion]:
        drawn = zip(requests, self._sampler.generate(requests), strict=True)
        return [Completion.failed("no luck") if r.candidate_id in self._failing else made for r, made in drawn]

    def close(self) -> None:
        self._sampler.close()


def test_what_could_not_be_drawn_is_kept_as_failed(sample: Sample, tmp_path: Path, model_folder: Path) -> None:
    config = make_config()
    config.sampler.max_failed_share = 0.2
    problem = load_task(config).train_problems()[0].problem_id
    failing = FailingSampler(open_sampler(config, model_folder), {f"{problem}/sample/1"})
    assert sample(tmp_path / "samples", config=config, sampler=failing).failed == 1
    failed = read(tmp_path / "samples")[1]
    assert (failed.finish_reason, failed.token_ids, failed.text) == ("failed", [], "")


def test_too_many_failures_stop_the_stage(sample: Sample, tmp_path: Path, model_folder: Path) -> None:
    problem = load_task(make_config()).train_problems()[0].problem_id
    failing = FailingSampler(open_sampler(make_config(), model_folder), {f"{problem}/sample/1"})
    with pytest.raises(MachineError) as error:
        sample(tmp_path, sampler=failing)
    assert str(error.value) == (
        f"{tmp_path}/part-00000.parquet: 1 of 12 completions could not be drawn; the first: no luck. Look at the "
        "engine's or the server's log, or set sampler.max_failed_share to at least 0.083 to go on without them."
    )
    assert list_parts(tmp_path) == []


def test_equal_samples_of_a_problem_are_counted(sample: Sample, tmp_path: Path) -> None:
    config = make_config()
    config.sampling.temperature = [1e-6]
    assert sample(tmp_path, config=config).duplicates == 20


def test_each_part_has_statistics(sample: Sample, tmp_path: Path) -> None:
    folder = tmp_path / "statistics"
    counts = sample(tmp_path / "train", statistics=folder)
    parts = read_statistics(folder, tmp_path / "train")
    assert [part.problems for part in parts] == [4, 4, 2]
    assert [part.completions for part in parts] == [12, 12, 6]
    assert sum(part.tokens for part in parts) == counts.tokens
    assert all(part.tokens_per_second > 0 and part.problems_per_second > 0 for part in parts)
    list_parts(tmp_path / "train")[0].unlink()
    assert [part.problems for part in read_statistics(folder, tmp_path / "train")] == [4, 2]


def make_statistics(*, finished_at: float, seconds: float, tokens: int = 100, spared: int = 0) -> PartStatistics:
    return PartStatistics(
        problems=1,
        completions=10 - spared,
        spared=spared,
        failed=0,
        duplicates=0,
        truncated_share=0.0,
        tokens=tokens,
        seconds=seconds,
        finished_at=finished_at,
        tokens_per_second=tokens / seconds,
        problems_per_second=1 / seconds,
    )


def test_the_speed_is_that_of_all_shards_while_they_work() -> None:
    two_shards = [make_statistics(finished_at=end, seconds=10.0) for end in (10.0, 10.0, 20.0, 20.0)]
    assert measure_speed(two_shards) == Speed(completions_per_second=2.0, tokens_per_second=20.0)
    after_a_night = [*two_shards, make_statistics(finished_at=50_000.0, seconds=20.0, tokens=400, spared=5)]
    assert measure_speed(after_a_night) == Speed(completions_per_second=1.25, tokens_per_second=20.0)
    long_gone = [make_statistics(finished_at=1.0, seconds=1.0, tokens=9999)]
    assert measure_speed(long_gone + two_shards * 8) == measure_speed(two_shards * 8)
    assert measure_speed([]) is None


def test_the_devices_of_other_starts_count_while_they_work() -> None:
    """Start a draws two parts at once for 10 s on 4 cores and 2 GPUs, b one for 4 s on 3 cores."""

    def drawn(start: str, finished_at: float, seconds: float, **devices: int) -> PartStatistics:
        whole = make_statistics(finished_at=finished_at, seconds=seconds)
        return dataclasses.replace(whole, start=start, devices=devices)

    parts = [
        drawn("a", 10.0, 10.0, cpu=4, gpu=2),
        drawn("a", 10.0, 8.0, cpu=4, gpu=2),
        drawn("b", 5.0, 4.0, cpu=3, gpu=0),
    ]
    assert time_of_others(parts) == {"wall": 10.0, "cpu": 52.0, "gpu": 20.0}


def test_the_devices_of_this_process_count_elsewhere_as_nothing(sample: Sample, tmp_path: Path) -> None:
    sample(tmp_path / "train", statistics=tmp_path / "statistics")
    assert time_of_others(read_statistics(tmp_path / "statistics", tmp_path / "train")) == {}


def test_shards_draw_their_own_parts_and_together_all(sample: Sample, tmp_path: Path) -> None:
    drawn = [sample(tmp_path / "shards", shard=Shard(index, 2)).completions for index in (1, 0)]
    assert drawn == [12, 18]
    sample(tmp_path / "whole")
    assert read(tmp_path / "shards") == read(tmp_path / "whole")
    merged = sample(tmp_path / "shards")
    assert (merged.completions, merged.completions_resumed) == (30, 30)


def test_a_part_too_many_is_refused(sample: Sample, tmp_path: Path) -> None:
    sample(tmp_path)
    list_parts(tmp_path)[0].with_name("part-00003.parquet").write_bytes(list_parts(tmp_path)[0].read_bytes())
    with pytest.raises(ArtifactError) as error:
        sample(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}/part-00003.parquet: holds none of this task's problems, which fill 3 parts. "
        f"Delete {tmp_path} to sample again."
    )
