"""Tasks whose problems stand in files or in Hugging Face data sets, one question a row.

`FileTask` does all that such tasks share; each says how a row becomes a problem, and brings its prompt and grader.

A prompt template holds {question} and may hold {shots} before it: there, as many worked examples stand as the
configuration asks for, each written as the rest of the template with its solution behind. "{last}" becomes "last " if
there are any. The examples come from task.shots_path, or are the training problems that task.shot_ids names, or else
short training problems that hashes of the questions pick: the same for every seed and every order of the file.
No example is a training or development problem: a model that reads the solution in its prompt can only copy it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path

from irpo_nemo.config import IRPOConfig
from irpo_nemo.errors import DataError
from irpo_nemo.grading import GRADERS
from irpo_nemo.records import Problem
from irpo_nemo.tasks.rows import Row, is_local, read_rows
from irpo_nemo.tasks.split import hold_out, shuffle_by_question, without_questions_of

MAX_SHOT_LENGTH = 600
"""Characters of question and solution of an example that we pick ourselves."""


def make_paper_prompt(ending: str) -> str:
    """The prompt template of the IRPO paper, appendix B.1; `ending` says how to give the answer."""
    return (
        "Your task is to answer the {last}question below. Give step by step reasoning before you answer, and "
        f"when you're ready to answer, {ending}\n"
        "{shots}Question: {question}\nSolution:"
    )


@dataclass(frozen=True, kw_only=True)
class FileTask:
    """Problems from files. Each file is read once."""

    config: IRPOConfig
    prompt_template: str
    """The task's own; task.prompt_template replaces it."""
    grader: str
    read_problem: Callable[[Row], Problem]
    """Turns a row into a problem; its problem_id may be "" for the row's place. Raises DataError without a place."""
    subset: str | None = None
    """The configuration of a Hugging Face data set whose name brings none."""
    num_shots: int = 0
    """Examples in the prompt when task.num_shots is null."""

    def train_problems(self) -> list[Problem]:
        return self._train_and_dev[0][: self.config.task.max_train_problems]

    def dev_problems(self) -> list[Problem]:
        if self.config.task.dev_path is not None:
            return self._load([self.config.task.dev_path], "validation")
        return self._train_and_dev[1]

    def test_problems(self) -> list[Problem]:
        task = self.config.task
        if task.evaluate_on == "dev":
            return self.dev_problems()[: task.max_test_problems]
        return self._load(_given(task.test_path), "test", limit=task.max_test_problems)

    def prompt(self, problem: Problem) -> str:
        head, _, body = self._template.rpartition("{shots}")
        examples = "".join(body.replace("{question}", shot.question) + self._solve(shot) + "\n" for shot in self._shots)
        return (
            head.replace("{last}", "last " if examples else "")
            + examples
            + body.replace("{question}", problem.question)
        )

    def demonstrations(self) -> Iterator[tuple[str, str]]:
        for problem in self.train_problems():
            completion = self.gold_completion(problem)
            if completion is not None:
                yield self.prompt(problem), completion

    def gold_completion(self, problem: Problem) -> str | None:
        if problem.solution is None:
            return None
        return problem.solution if self.config.task.chat_template == "model" else self._solve(problem)

    def data_files(self) -> list[Path]:
        return [Path(source) for source in self._sources if is_local(source)]

    def data_sets(self) -> list[str]:
        return [source for source in self._sources if not is_local(source)]

    @property
    def _sources(self) -> list[str]:
        """Everything that is read."""
        task = self.config.task
        evaluated = task.dev_path if task.evaluate_on == "dev" else task.test_path
        return [*_given(task.train_path), *task.extra_train_paths, *_given(evaluated), *_given(task.shots_path)]

    @property
    def _template(self) -> str:
        return self.config.task.prompt_template or self.prompt_template

    def _solve(self, problem: Problem) -> str:
        separator = "" if self._template[-1:].isspace() else " "
        return f"{separator}{problem.solution}"

    @cached_property
    def _train_and_dev(self) -> tuple[list[Problem], list[Problem]]:
        problems = without_questions_of(self._all_train_problems, self._shots)
        count, salt = self.config.task.num_dev_problems, f"{self.config.seed}/dev"
        return hold_out(problems, count, salt=salt, option="task.num_dev_problems")

    @cached_property
    def _all_train_problems(self) -> list[Problem]:
        task = self.config.task
        is_all_needed = task.num_dev_problems > 0 or self._wants_shots
        limit = None if is_all_needed else task.max_train_problems
        return self._load([*_given(task.train_path), *task.extra_train_paths], "train", limit=limit)

    @property
    def _wants_shots(self) -> bool:
        task = self.config.task
        if task.num_shots is not None:
            return task.num_shots > 0
        return "{shots}" in self._template and bool(self.num_shots or task.shot_ids or task.shots_path)

    @cached_property
    def _shots(self) -> list[Problem]:
        """The examples of every prompt."""
        task = self.config.task
        if not self._wants_shots:
            return []
        named = self._load([task.shots_path], "train") if task.shots_path else self._find_shots(task.shot_ids)
        count = task.num_shots or (len(named) if named else self.num_shots)
        shots = (named or self._pick_shots())[:count]
        if len(shots) < count:
            raise DataError(f"task.num_shots: is {count}, but only {len(shots)} examples were found. Lower it.")
        for shot in shots:
            if shot.solution is None:
                raise DataError(
                    f"{shot.problem_id}: has no solution, but an example in the prompt needs one. Name another."
                )
        return shots

    def _find_shots(self, problem_ids: Sequence[str]) -> list[Problem]:
        by_id = {problem.problem_id: problem for problem in self._all_train_problems}
        for problem_id in problem_ids:
            if problem_id not in by_id:
                raise DataError(
                    f"task.shot_ids: names {problem_id!r}, but no training problem has that id; "
                    f"the first has {next(iter(by_id))!r}. Name others, or leave task.shot_ids out."
                )
        return [by_id[problem_id] for problem_id in problem_ids]

    def _pick_shots(self) -> list[Problem]:
        solved = (problem for problem in self._all_train_problems if problem.solution is not None)
        short = [problem for problem in solved if len(problem.question + str(problem.solution)) <= MAX_SHOT_LENGTH]
        return shuffle_by_question(short, salt="examples")

    def _load(self, sources: Sequence[str], split: str, *, limit: int | None = None) -> list[Problem]:
        if not sources:
            raise DataError(f"task.{split}_path: is null; name a file, a folder or a Hugging Face data set.")
        problems: list[Problem] = []
        places: dict[str, str] = {}
        for source in sources:
            rows = read_rows(source, subset=self.subset, split=split)
            for place, row in islice(rows, None if limit is None else limit - len(problems)):
                problem = self._read_row(place, row, fallback_id=f"{split}-{len(problems)}")
                if problem.problem_id in places:
                    raise DataError(
                        f"{place}: id {problem.problem_id!r} was already used at {places[problem.problem_id]}. "
                        "Give every row its own id, or leave ids out."
                    )
                places[problem.problem_id] = place
                problems.append(problem)
            if not problems:
                raise DataError(f"{source}: holds no problems; wanted one JSON object a line.")
        return problems

    def _read_row(self, place: str, row: Row, *, fallback_id: str) -> Problem:
        try:
            problem = self.read_problem(row)
            GRADERS[self.grader].check_gold(problem)
        except DataError as error:
            raise DataError(f"{place}: {error}") from None
        return problem if problem.problem_id else replace(problem, problem_id=fallback_id)


def _given(source: str | None) -> list[str]:
    return [] if source is None else [source]
