import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import pytest

from irpo_nemo.config import PairingConfig
from irpo_nemo.errors import ArtifactError
from irpo_nemo.pairing import PairingResult, make_pairs, take_pairs
from irpo_nemo.records import Candidate, CandidateKind, GradedCandidate, Verdict

VERDICTS: dict[str, Verdict] = {
    "w": "correct",
    "l": "wrong",
    "u": "unparsable",
    "e": "error",
    "W": "correct",
    "L": "wrong",
}
AUDITS: dict[str, Verdict] = {"W": "wrong", "L": "correct", "l": "unparsable", "w": "correct"}
KINDS: dict[str, CandidateKind] = {"G": "gold", "T": "greedy"}


def make_problem(problem_id: str, letters: str, tokens: Sequence[list[int]] = ()) -> tuple[list[Any], list[Any]]:
    """Candidates of one problem: w(inner), l(oser), u(nparsable), e(rror); G gold and T greedy, both correct.

    W and L are what the auditor calls the contrary; of l it can read no answer.
    """
    candidates, grades = [], []
    for index, letter in enumerate(letters):
        kind = KINDS.get(letter, "sample")
        identity: dict[str, Any] = {
            "candidate_id": f"{problem_id}/{kind}/{index}",
            "problem_id": problem_id,
            "kind": kind,
            "index": index,
        }
        token_ids = tokens[index] if tokens else [100 + index, 1]
        candidates.append(
            Candidate(
                **identity,
                prompt_token_ids=[0, 7],
                token_ids=token_ids,
                text="",
                finish_reason="stop",
                model_hash="h",
            )
        )
        verdict = VERDICTS.get(letter, "correct")
        graded = {"answer": "5", "verdict": verdict, "layer": "hash", "audit_verdict": AUDITS.get(letter)}
        grades.append(GradedCandidate(**identity, gold_answer="5", **graded))  # type: ignore[arg-type]
    return candidates, grades


def pair(*problems: tuple[list[Any], list[Any]], seed: int = 0, **options: Any) -> PairingResult:
    candidates = [candidate for problem in problems for candidate in problem[0]]
    grades = [grade for problem in problems for grade in problem[1]]
    return make_pairs(iter(candidates), iter(grades), PairingConfig(**options), seed=seed)


def indices(result: PairingResult) -> list[tuple[int, int]]:
    """(index of chosen, index of rejected) of each pair."""
    return [(int(p.chosen_id.split("/")[-1]), int(p.rejected_id.split("/")[-1])) for p in result.pairs]


def test_both_lists_restart_at_their_end_until_there_are_k_pairs() -> None:
    result = pair(make_problem("p", "wlwwl"), num_pairs_per_problem=7)
    assert indices(result) == [(0, 1), (2, 4), (3, 1), (0, 4), (2, 1), (3, 4), (0, 1)]
    assert [made.pair_id for made in result.pairs] == [f"p/{number}" for number in range(7)]


def test_one_winner_and_one_loser_give_k_copies() -> None:
    assert indices(pair(make_problem("p", "lw"), num_pairs_per_problem=3)) == [(1, 0)] * 3


def test_a_pair_carries_the_tokens_of_its_candidates() -> None:
    (made,) = pair(make_problem("p", "lw"), num_pairs_per_problem=1).pairs
    assert (made.prompt_token_ids, made.chosen_token_ids, made.rejected_token_ids) == ([0, 7], [101, 1], [100, 1])
    assert (made.problem_id, made.chosen_id, made.rejected_id) == ("p", "p/sample/1", "p/sample/0")


def test_cap_by_losers_uses_each_loser_once_and_recycles_winners() -> None:
    assert indices(pair(make_problem("p", "wlll"), num_pairs_per_problem=10, cap="losers")) == [(0, 1), (0, 2), (0, 3)]
    assert indices(pair(make_problem("p", "wlll"), num_pairs_per_problem=2, cap="losers")) == [(0, 1), (0, 2)]


def test_gold_joins_the_end_of_the_winners_only_when_asked() -> None:
    problem = make_problem("p", "Gwl")
    assert indices(pair(problem, num_pairs_per_problem=3, gold_solutions=True)) == [(1, 2), (0, 2), (1, 2)]
    assert indices(pair(problem, num_pairs_per_problem=2)) == [(1, 2), (1, 2)]


def test_gold_alone_wins_when_no_sample_does() -> None:
    assert indices(pair(make_problem("p", "lG"), num_pairs_per_problem=1, gold_solutions=True)) == [(1, 0)]


def test_gold_that_is_not_correct_joins_neither_side() -> None:
    candidates, grades = make_problem("p", "wG")
    grades[1] = dataclasses.replace(grades[1], verdict="wrong")
    result = pair((candidates, grades), gold_solutions=True)
    assert (result.pairs, result.summary.num_gold_refused) == ([], 1)


def test_greedy_candidates_take_no_part() -> None:
    assert pair(make_problem("p", "Tl")).summary.num_problems_without_pairs == {"no_winner": 1}


def test_unparsable_is_a_loser_or_dropped() -> None:
    problem = make_problem("p", "wu")
    assert indices(pair(problem, num_pairs_per_problem=1)) == [(0, 1)]
    summary = pair(problem, unparsable="drop").summary
    assert (summary.num_unparsable_dropped, summary.num_problems_without_pairs) == (1, {"no_loser": 1})


def test_grader_errors_never_join() -> None:
    summary = pair(make_problem("p", "we")).summary
    assert (summary.num_grader_errors, summary.num_problems_without_pairs) == (1, {"no_loser": 1})


def test_duplicates_are_told_by_token_ids() -> None:
    problem = make_problem("p", "wwlll", [[1], [1], [2], [3], [2]])
    kept = pair(problem, num_pairs_per_problem=3)
    dropped = pair(problem, num_pairs_per_problem=3, drop_duplicates=True)
    assert indices(kept) == [(0, 2), (1, 3), (0, 4)]
    assert indices(dropped) == [(0, 2), (0, 3), (0, 2)]
    assert (kept.summary.num_duplicates_dropped, dropped.summary.num_duplicates_dropped) == (0, 2)


def test_disputed_candidates_join_neither_side() -> None:
    result = pair(make_problem("p", "WwLl"), make_problem("q", "wL"), num_pairs_per_problem=2)
    assert indices(result) == [(1, 3), (1, 3)]
    assert result.summary.num_disputed == 3
    assert result.summary.num_problems_without_pairs == {"no_loser": 1}


def test_over_long_pairs_leave_and_the_others_keep_their_ids() -> None:
    problem = make_problem("p", "wwl", [[5] * 3, [5] * 4, [6]])
    result = pair(problem, num_pairs_per_problem=4, max_sequence_length=5)
    assert [made.pair_id for made in result.pairs] == ["p/0", "p/2"]
    assert result.summary.num_pairs_too_long == 2
    too_long = pair(problem, num_pairs_per_problem=4, max_sequence_length=4)
    assert (too_long.pairs, too_long.summary.num_problems_without_pairs) == ([], {"all_too_long": 1})


def test_summary_counts_problems_by_reason() -> None:
    problems = [make_problem(str(number), letters) for number, letters in enumerate(["wl", "ww", "l", "e", "wll", "G"])]
    summary = pair(*problems, num_pairs_per_problem=2).summary
    assert summary.num_problems == 6
    assert summary.num_problems_with_pairs == 2
    assert summary.num_problems_without_pairs == {"no_loser": 1, "no_winner": 1, "no_candidates": 2}
    assert summary.num_pairs == 4
    assert summary.winners_per_problem == {1: 2, 2: 1, 0: 3}
    assert summary.losers_per_problem == {1: 2, 0: 3, 2: 1}
    assert json.loads(json.dumps(dataclasses.asdict(summary)))["winners_per_problem"] == {"1": 2, "2": 1, "0": 3}


def test_subsample_has_the_size_keeps_the_order_and_follows_the_seed() -> None:
    problems = [make_problem(str(number), "wl") for number in range(100)]
    whole = [made.pair_id for made in pair(*problems, num_pairs_per_problem=2).pairs]
    chosen = {
        seed: [made.pair_id for made in pair(*problems, num_pairs_per_problem=2, max_pairs=30, seed=seed).pairs]
        for seed in (0, 1)
    }
    again = pair(*problems, num_pairs_per_problem=2, max_pairs=30, seed=0)
    assert [made.pair_id for made in again.pairs] == chosen[0]
    assert chosen[0] != chosen[1]
    assert len(chosen[0]) == 30
    assert chosen[0] == [pair_id for pair_id in whole if pair_id in chosen[0]]
    assert (again.summary.num_pairs, again.summary.num_pairs_subsampled_away) == (30, 170)


def test_no_limit_keeps_all() -> None:
    assert len(pair(make_problem("p", "wl"), num_pairs_per_problem=5, max_pairs=None).pairs) == 5


def test_grades_of_other_samples_are_an_error() -> None:
    with pytest.raises(ArtifactError) as error:
        pair((make_problem("p", "wl")[0], make_problem("q", "wl")[1]))
    assert str(error.value) == (
        "graded candidates: found problem q where p is wanted; they are not of these samples. "
        "Delete the iteration's graded folder and run `irpo run` again."
    )


@pytest.mark.parametrize(
    ("num_candidates", "num_grades", "found", "wanted"), [(2, 0, "nothing", "p"), (0, 2, "p", "nothing")]
)
def test_missing_parts_are_an_error(num_candidates: int, num_grades: int, found: str, wanted: str) -> None:
    candidates, grades = make_problem("p", "wl")
    with pytest.raises(ArtifactError, match=f"found problem {found} where {wanted} is wanted"):
        pair((candidates[:num_candidates], grades[:num_grades]))


def test_a_candidate_without_grade_is_an_error() -> None:
    candidates, grades = make_problem("p", "wl")
    with pytest.raises(ArtifactError, match=r"^graded candidates: none for p/sample/1; the stage that grades did not"):
        pair((candidates, grades[:1]))


def test_a_problem_that_comes_twice_is_an_error() -> None:
    with pytest.raises(ArtifactError, match=r"^candidates: those of problem p are not next to each other"):
        pair(make_problem("p", "wl"), make_problem("q", "wl"), make_problem("p", "wl"))


def test_pairs_made_elsewhere_are_kept_within_the_limits() -> None:
    made = pair(*(make_problem(f"p{number}", "wl") for number in range(3)), num_pairs_per_problem=4).pairs
    assert take_pairs(made, PairingConfig(), seed=0).pairs == made
    long = dataclasses.replace(made[0], problem_id="long", prompt_token_ids=[0] * 50)
    result = take_pairs([*made, long], PairingConfig(max_sequence_length=40, max_pairs=5), seed=0)
    assert all(kept in made for kept in result.pairs)
    summary = result.summary
    assert (summary.num_problems, summary.num_problems_with_pairs) == (4, 3)
    assert summary.num_problems_without_pairs == {"all_too_long": 1}
    assert (summary.num_pairs, summary.num_pairs_too_long, summary.num_pairs_subsampled_away) == (5, 1, 7)
