"""GSM8K: grade-school word problems (Cobbe et al. 2021, arXiv 2110.14168), as OpenAI published them.

A row holds "question" and "answer"; the answer is a worked solution with <<48/2=24>> calculator marks whose last line
is "#### 72". The prompt is the zero-shot prompt of the IRPO paper, appendix B.1.
"""

import re

from irpo_nemo.config import IRPOConfig
from irpo_nemo.errors import DataError
from irpo_nemo.records import Problem
from irpo_nemo.tasks.file_task import FileTask, make_paper_prompt
from irpo_nemo.tasks.rows import Row, take_text

PROMPT_TEMPLATE = make_paper_prompt('please use the format "Final answer: ..."')

_CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")


def make_gsm8k_task(config: IRPOConfig) -> FileTask:
    """GSM8K from the files, or the Hugging Face data set, that the configuration names."""
    return FileTask(
        config=config, prompt_template=PROMPT_TEMPLATE, grader="numeric", read_problem=read_problem, subset="main"
    )


def read_problem(row: Row) -> Problem:
    """Turn a published row into a problem.

    Raises:
        DataError: A key is missing or empty, or the answer does not end in "#### n".
    """
    reasoning, mark, answer = take_text(row, "answer").rpartition("####")
    if not mark or not answer.strip():
        raise DataError("'answer' does not end in '#### n', as GSM8K's answers do. Use task=jsonl for other formats.")
    answer = answer.strip()
    solution = f"{_CALCULATOR_MARK.sub('', reasoning).strip()}\nFinal answer: {answer}"
    return Problem(problem_id="", question=take_text(row, "question"), gold_answer=answer, solution=solution.lstrip())
