"""Candidates drawn in rounds, until a problem has enough of both sides."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest

from irpo_nemo.artifacts import list_parts, read_manifest, read_parts, read_records, write_records
from irpo_nemo.config import IRPOConfig
from irpo_nemo.config_checks import check_relations
from irpo_nemo.errors import ArtifactError
from irpo_nemo.records import Candidate, GradedCandidate, Problem, Verdict
from irpo_nemo.run_folder import RunFolder
from irpo_nemo.sampling import Completion, SamplingRequest
from irpo_nemo.sampling.part_statistics import read_statistics
from irpo_nemo.sampling.parts import sample_split
from irpo_nemo.sampling.rounds import StopRule, could_have_stopped, draw_in_rounds
from irpo_nemo.sampling.split_settings import SplitSettings
from irpo_nemo.stages.frame import run_stage
from irpo_nemo.tasks import load_task
from irpo_nemo.tokenization import load_tokenizer
from tests.sampling.conftest import make_config
from tests.sampling.test_shards import make_run
from tests.sampling.test_shards import read as read_run

RULE = StopRule(round_size=2, enough=2, unparsable_loses=True)


def make_requests(problem_id: str, count: int) -> list[SamplingRequest]:
    return [
        SamplingRequest(
            candidate_id=f"{problem_id}/sample/{index}",
            problem_id=problem_id,
            kind="sample",
            index=index,
            prompt_token_ids=[1],
            temperature=1.0,
            top_p=1.0,
            max_new_tokens=9,
            seed=index,
        )
        for index in range(count)
    ]


def draw(outcomes: dict[str, str], *, rule: StopRule = RULE, golds: dict[str, Candidate] | None = None) -> list[str]:
    """Draw candidates whose outcomes are spelled: c correct, w wrong, u unparsable, e error, f failed; a capital letter
    repeats the tokens of the candidate before. Returns what was drawn of each problem."""
    texts = {f"{name}/sample/{index}": letter for name, word in outcomes.items() for index, letter in enumerate(word)}
    verdicts: dict[str, Verdict] = {"c": "correct", "w": "wrong", "u": "unparsable", "e": "error", "f": "error"}

    def generate(requests: Sequence[SamplingRequest]) -> list[Completion]:
        return [make_completion(request.index, texts[request.candidate_id]) for request in requests]

    def judge(items: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        return [verdicts[text.lower() or "f"] for _, text in items]

    completions = draw_in_rounds(
        generate,
        [request for name, word in outcomes.items() for request in make_requests(name, len(word))],
        {name: Problem(problem_id=name, question="", gold_answer="") for name in outcomes},
        rule=rule,
        judge=judge,
        golds=golds or {},
    )
    drawn = [sum(key.startswith(f"{name}/") for key in completions) for name in outcomes]
    assert list(completions) == sorted(completions, key=lambda key: int(key.rsplit("/", 1)[1]) // rule.round_size)
    return [word[:count] for word, count in zip(outcomes.values(), drawn, strict=True)]


def make_completion(index: int, letter: str) -> Completion:
    if letter == "f":
        return Completion.failed("no luck")
    return Completion(token_ids=[index - letter.isupper()], text=letter, finish_reason="stop")


@pytest.mark.parametrize(
    ("outcomes", "drawn"),
    [
        ("cwcwcwcw", "cwcw"),
        ("ccccwwcw", "ccccww"),
        ("cccccccc", "cccccccc"),
        ("cwwcccc", "cwwc"),
        ("cuucccc", "cuuc"),  # an unparsable one is a loser
        ("ceecccwwcc", "ceecccww"),  # an error is on no side
        ("cffccwwwcc", "cffccwww"),
        ("cCwWcwcc", "cCwWcw"),  # the same completion again counts once
        ("cwc", "cwc"),
    ],
)
def test_a_problem_stops_at_the_end_of_the_round_in_which_it_has_enough(outcomes: str, drawn: str) -> None:
    assert draw({"p": outcomes}) == [drawn]


def test_each_problem_stops_by_itself() -> None:
    assert draw({"p": "cwcwcw", "q": "wwwwcw", "r": "cwwccc"}) == ["cwcw", "wwwwcw", "cwwc"]


def test_dropped_unparsable_ones_are_no_losers() -> None:
    rule = dataclasses.replace(RULE, unparsable_loses=False)
    assert draw({"p": "cuucccww"}, rule=rule) == ["cuucccww"]


def test_a_gold_solution_is_a_winner() -> None:
    gold = Candidate(
        candidate_id="p/gold/0",
        problem_id="p",
        kind="gold",
        index=0,
        prompt_token_ids=[1],
        token_ids=[99],
        text="",
        finish_reason="stop",
        model_hash="",
    )
    assert draw({"p": "wwcwcc"}, golds={"p": gold}) == ["wwcw"]
    assert draw({"p": "wwcwcc"}) == ["wwcwcc"]


def test_what_rounds_leave_is_known_by_its_ends() -> None:
    requests = make_requests("p", 6) + make_requests("q", 6)

    def found(p: Sequence[int], q: Sequence[int]) -> dict[str, bool]:
        return dict.fromkeys([f"p/sample/{i}" for i in p] + [f"q/sample/{i}" for i in q], True)

    assert could_have_stopped(requests, found(range(6), range(6)), round_size=4)
    assert could_have_stopped(requests, found(range(4), range(6)), round_size=4)
    assert not could_have_stopped(requests, found(range(3), range(6)), round_size=4)  # not at a round's end
    assert not could_have_stopped(requests, found([], range(6)), round_size=4)
    assert not could_have_stopped(requests, found([0, 1, 2, 3, 5], range(6)), round_size=4)  # not the first ones


def test_the_rule_is_for_training_candidates_and_says_how_many_are_enough() -> None:
    config = make_config()
    config.sampling.round_size = 2
    settings = [SplitSettings.of(config, iteration=0, split=split, model_hash="") for split in ("train", "test")]
    assert settings[0].stop_rule == StopRule(round_size=2, enough=10, unparsable_loses=True)
    assert settings[1].stop_rule is None
    config.sampling.enough_per_side = 3
    config.pairing.unparsable = "drop"
    rule = SplitSettings.of(config, iteration=0, split="train", model_hash="").stop_rule
    assert rule == StopRule(round_size=2, enough=3, unparsable_loses=False)
    config.sampling.round_size = None
    config.sft.enabled = True
    assert check_relations(config) == [
        "sampling.enough_per_side: is set, but only sampling in rounds stops early; set sampling.round_size too"
    ]


class Engine:
    """Draws what the candidate's number says: even ones are right."""

    window = 0
    honours_seeds = True

    def generate(self, requests: Sequence[SamplingRequest]) -> list[Completion]:
        return [
            Completion(
                token_ids=[5, request.index, 1], text="right" if request.index % 2 == 0 else "", finish_reason="stop"
            )
            for request in requests
        ]

    def close(self) -> None:
        pass


def sample_with_engine(config: IRPOConfig, model_folder: Path, folder: Path) -> tuple[int, int, int]:
    counts = sample_split(
        Engine,
        load_tokenizer(model_folder, trust_remote_code=False),
        load_task(config),
        config,
        iteration=0,
        split="train",
        folder=folder,
        model_hash="a" * 64,
        open_judge=lambda: lambda items: ["correct" if text else "wrong" for _, text in items],
    )
    return counts.completions, counts.spared, counts.completions_resumed


def test_parts_drawn_in_rounds_are_resumed_and_checked(tmp_path: Path, model_folder: Path) -> None:
    config = make_config()
    config.sampling.num_candidates, config.sampling.round_size, config.sampling.enough_per_side = 9, 2, 1
    assert sample_with_engine(config, model_folder, tmp_path) == (20, 70, 0)
    list_parts(tmp_path)[1].unlink()
    assert sample_with_engine(config, model_folder, tmp_path) == (20, 70, 12)
    candidates = list(read_parts(tmp_path, Candidate))
    assert [made.index for made in candidates] == [0, 1] * 10
    part = list_parts(tmp_path)[0]
    write_records(part, read_records(part, Candidate)[1:], Candidate)
    with pytest.raises(ArtifactError, match="holds other problems or prompts than the task"):
        sample_with_engine(config, model_folder, tmp_path)


def test_rounds_that_find_no_winner_draw_what_one_round_draws(tmp_path: Path, model_folder: Path) -> None:
    """The model of the tests is never right, and the stage's own grader says so."""
    rounds, whole = (make_run(tmp_path, model_folder, name=name) for name in ("rounds", "whole"))
    rounds.sampling.round_size = 2
    run_stage(rounds, "sample", 0)
    run_stage(whole, "sample", 0)
    assert read_run(rounds) == read_run(whole)
    manifest = read_manifest(RunFolder(rounds.run_folder).iteration(0).manifest("sample"))
    assert manifest is not None
    assert manifest.counts["spared"] == 0


def test_grading_tells_the_unparsable_share_of_each_part(tmp_path: Path, model_folder: Path) -> None:
    config = make_run(tmp_path, model_folder)
    for stage in ("sample", "grade"):
        run_stage(config, stage, 0)
    folder = RunFolder(config.run_folder).iteration(0)
    for split in ("train", "test"):
        statistics = read_statistics(folder.sampling_statistics(split), folder.samples(split))
        for part, known in zip(list_parts(folder.graded(split)), statistics, strict=True):
            verdicts = [grade.verdict for grade in read_records(part, GradedCandidate)]
            assert known.unparsable_share == round(verdicts.count("unparsable") / len(verdicts), 4)
            assert known.unparsable_share > 0
