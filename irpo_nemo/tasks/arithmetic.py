"""The embedded default task: generated stories of additions and subtractions.

Its demonstrations mix three manners, all with correct answers:

    terse      Final answer: 9
    partial    5+7=12
               ...
               Final answer: 9
    worked     5+7=12
               12-3=9
               Final answer: 9

so that M_0 mostly answers at once, and often wrongly, though it can work step by step. That is what IRPO can then bring
out. Stories of the train, test and demonstration sets are all different, and depend on the seed alone: more
demonstrations or train problems change neither the test problems nor the first train problems.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from irpo_nemo.config import ArithmeticConfig, IRPOConfig
from irpo_nemo.errors import ConfigError
from irpo_nemo.records import Problem
from irpo_nemo.tasks.split import hold_out

PROMPT_TEMPLATE = "Question: {question}\nSolution:\n"

_PEOPLE = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gia", "Hugo", "Ivy", "Jon", "Kim", "Leo")
_OBJECTS = ("apples", "books", "cards", "coins", "cups", "eggs", "pears", "pens", "shells", "stamps", "stones", "toys")
_GAINS = ("buys", "finds", "gets", "makes", "receives", "wins")
_LOSSES = ("breaks", "drops", "hides", "loses", "sells", "spends")

_MAX_VAIN_DRAWS = 1000
"""So many known stories in a row mean that there are hardly any others."""


@dataclass(frozen=True)
class Story:
    """Someone has some things, gains and loses some."""

    person: str
    thing: str
    start: int
    changes: tuple[tuple[str, int], ...]
    """(verb, signed amount); the running total never falls below zero."""

    @property
    def question(self) -> str:
        events = " ".join(f"{self.person} {verb} {abs(amount)}." for verb, amount in self.changes)
        return f"{self.person} has {self.start} {self.thing}. {events} How many {self.thing} does {self.person} have?"

    @property
    def steps(self) -> list[str]:
        """One equation for each change."""
        total, steps = self.start, []
        for _, amount in self.changes:
            steps.append(f"{total}{amount:+d}={total + amount}")
            total += amount
        return steps

    @property
    def answer(self) -> int:
        return self.start + sum(amount for _, amount in self.changes)

    @property
    def terse(self) -> str:
        return f"Final answer: {self.answer}"

    @property
    def partial(self) -> str:
        return f"{self.steps[0]}\n...\n{self.terse}"

    @property
    def worked(self) -> str:
        return "\n".join([*self.steps, self.terse])


class ArithmeticTask:
    """The generated stories of one seed."""

    grader = "numeric"

    def __init__(self, config: IRPOConfig) -> None:
        self._options = config.task.arithmetic
        self._task = config.task
        self._template = config.task.prompt_template or PROMPT_TEMPLATE
        self._seed = config.seed

    def train_problems(self) -> list[Problem]:
        return self._train_and_dev()[0][: self._task.max_train_problems]

    def dev_problems(self) -> list[Problem]:
        return self._train_and_dev()[1]

    def test_problems(self) -> list[Problem]:
        if self._task.evaluate_on == "dev":
            return self.dev_problems()[: self._task.max_test_problems]
        problems = [_problem(f"test-{row}", story) for row, story in enumerate(self._test_stories())]
        return problems[: self._task.max_test_problems]

    def prompt(self, problem: Problem) -> str:
        return self._prompt(problem.question)

    def demonstrations(self) -> Iterator[tuple[str, str]]:
        options = self._options
        if options.demonstrations == "gold":
            for problem in self.train_problems():
                assert problem.solution is not None, "stories come with their steps"
                yield self.prompt(problem), problem.solution
            return
        taken = {story.question for story in [*self._test_stories(), *self._train_stories()]}
        manners = random.Random(f"{self._seed}/arithmetic/manners")
        for story in self._draw_stories("demonstrations", options.num_demonstrations, taken):
            draw = manners.random()
            if draw < options.terse_share:
                completion = story.terse
            elif draw < options.terse_share + options.partial_share:
                completion = story.partial
            else:
                completion = story.worked
            yield self._prompt(story.question), completion

    def gold_completion(self, problem: Problem) -> str | None:
        return problem.solution

    def data_files(self) -> list[Path]:
        return []

    def data_sets(self) -> list[str]:
        return []

    def _train_and_dev(self) -> tuple[list[Problem], list[Problem]]:
        problems = [_problem(f"train-{row}", story) for row, story in enumerate(self._train_stories())]
        return hold_out(problems, self._task.num_dev_problems, salt=f"{self._seed}/dev", option="task.num_dev_problems")

    def _prompt(self, question: str) -> str:
        return self._template.replace("{question}", question)

    def _test_stories(self) -> list[Story]:
        return self._draw_stories("test", self._options.num_test_problems, set())

    def _train_stories(self) -> list[Story]:
        taken = {story.question for story in self._test_stories()}
        return self._draw_stories("train", self._options.num_train_problems, taken)

    def _draw_stories(self, split: str, count: int, taken: set[str]) -> list[Story]:
        """Draw `count` different stories whose questions are not in `taken`.

        Raises:
            ConfigError: There are too few different stories.
        """
        generator = random.Random(f"{self._seed}/arithmetic/{split}")
        known = set(taken)
        stories: list[Story] = []
        vain = 0
        while len(stories) < count:
            story = draw_story(generator, self._options)
            if (question := story.question) not in known:
                known.add(question)
                stories.append(story)
                vain = 0
            elif (vain := vain + 1) == _MAX_VAIN_DRAWS:
                raise ConfigError(
                    f"task.arithmetic: only {len(known)} different stories were found, but {len(taken) + count} are "
                    "wanted. Raise max_operations or max_operand, or lower num_train_problems, num_test_problems or "
                    "num_demonstrations."
                )
        return stories


def draw_story(generator: random.Random, options: ArithmeticConfig) -> Story:
    """Draw one story; an amount is lost only when there is that much."""
    start = total = generator.randint(options.min_operand, options.max_operand)
    changes = []
    for _ in range(generator.randint(options.min_operations, options.max_operations)):
        amount = generator.randint(options.min_operand, options.max_operand)
        is_gain = generator.random() < 0.5 or amount > total
        changes.append((generator.choice(_GAINS if is_gain else _LOSSES), amount if is_gain else -amount))
        total += changes[-1][1]
    return Story(generator.choice(_PEOPLE), generator.choice(_OBJECTS), start, tuple(changes))


def _problem(problem_id: str, story: Story) -> Problem:
    return Problem(problem_id=problem_id, question=story.question, gold_answer=str(story.answer), solution=story.worked)
