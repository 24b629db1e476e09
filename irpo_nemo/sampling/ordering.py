"""The order in which requests go to an engine that keeps the keys and values of prompts it has read."""

from collections.abc import Sequence

from irpo_nemo.sampling.sampler import SamplingRequest


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
