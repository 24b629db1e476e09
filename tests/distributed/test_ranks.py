"""The harness itself: results come back by rank, and a failure or a hang is told, not waited for."""

import os
import time

import pytest
import torch
import torch.distributed as dist

from tests.distributed.ranks import run_on_ranks


def sum_of_ranks(offset: int) -> tuple[int, float]:
    total = torch.tensor(float(dist.get_rank() + offset))
    dist.all_reduce(total)
    return int(os.environ["RANK"]), total.item()


def fail_on_rank_1() -> None:
    if dist.get_rank() == 1:
        raise ValueError("rank 1 has a bug")
    dist.barrier()


def hang() -> None:
    time.sleep(60)


def test_every_rank_returns_its_result() -> None:
    assert run_on_ranks(sum_of_ranks, 2, 10) == [(0, 21.0), (1, 21.0)]


def test_the_traceback_of_a_failed_rank_is_shown_though_others_wait() -> None:
    with pytest.raises(AssertionError, match=r"rank 1 failed:(.|\n)*ValueError: rank 1 has a bug"):
        run_on_ranks(fail_on_rank_1, 2)


def test_ranks_that_hang_are_killed() -> None:
    with pytest.raises(TimeoutError, match="still ran after 3"):
        run_on_ranks(hang, 1, timeout_seconds=3)
