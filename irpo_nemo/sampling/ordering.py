"""Many requests at once, in the order that suits an engine: one that takes batches, or one that remembers prompts."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence

from irpo_nemo.sampling.sampler import Completion, SamplingRequest


async def complete_all(
    requests: Sequence[SamplingRequest], complete: Callable[[SamplingRequest], Awaitable[Completion]], *, window: int
) -> list[Completion]:
    """Complete every request, at most `window` at a time; an exception of one cancels the others."""
    completions: dict[int, Completion] = {}
    places = iter(order_for_reuse(requests))

    async def work() -> None:
        for place in places:
            completions[place] = await complete(requests[place])

    workers = [asyncio.ensure_future(work()) for _ in range(min(window, len(requests)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
    return [completions[place] for place in range(len(requests))]


def order_for_reuse(requests: Sequence[SamplingRequest]) -> list[int]:
    """Places of the requests: problem by problem, with the first request of each sent before the rest of the last one.

    So a prompt has been read once when the rest of its requests arrive, and they find it in the engine's cache.
    """
    by_problem: dict[str, list[int]] = {}
    for place, request in enumerate(requests):
        by_problem.setdefault(request.problem_id, []).append(place)
    order: list[int] = []
    waiting: list[int] = []
    for places in by_problem.values():
        order += [places[0], *waiting]
        waiting = places[1:]
    return order + waiting


def batch_numbers(requests: Sequence[SamplingRequest], batch_size: int) -> Iterator[list[int]]:
    """Yield the places of the requests of each batch; like prompts stand together, and long ones with long ones."""
    order = sorted(range(len(requests)), key=lambda number: (-len(requests[number].prompt_token_ids), number))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
