"""One of several processes of the transformers sampler: a model that draws the batches it is sent.

    python -m irpo_nemo.sampling.transformers_worker DESCRIPTOR

Lines of JSON, on the socket of that descriptor:

    in    {"model_folder": "/runs/x/m0/hf", "dtype": "auto", "batch_size": 256, "trust_remote_code": false}
    out   {"ready": {}}
    in    {"id": 7, "requests": [{"candidate_id": ..., "prompt_token_ids": [...], ...}, ...]}
    out   {"id": 7, "completions": [{"token_ids": [...], "text": ..., ...}, ...]}
    out   {"id": 8, "error": {"kind": "MachineError", "message": "cuda:0: out of memory ..."}}

The end of the input ends the process.
"""

import dataclasses
import json
import socket
import sys
from pathlib import Path
from typing import Any

from irpo_nemo.errors import IRPOError
from irpo_nemo.sampling.sampler import Sampler, SamplingRequest
from irpo_nemo.sampling.transformers import load_sampler


def main(descriptor: int) -> None:
    """Load the model and serve the owner until it closes the socket."""
    with socket.socket(fileno=descriptor) as connection, connection.makefile("rb") as lines:
        order = json.loads(lines.readline())
        try:
            sampler = load_sampler(Path(order.pop("model_folder")), **order)
        except IRPOError as error:
            sys.exit(str(error))
        _send(connection, {"ready": {}})
        for line in lines:
            message = json.loads(line)
            _send(connection, {"id": message["id"], **_answer(sampler, message["requests"])})


def _answer(sampler: Sampler, requests: list[dict[str, Any]]) -> dict[str, Any]:
    try:
        completions = sampler.generate([SamplingRequest(**request) for request in requests])
    except IRPOError as error:
        return {"error": {"kind": type(error).__name__, "message": str(error)}}
    return {"completions": [dataclasses.asdict(completion) for completion in completions]}


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    main(int(sys.argv[1]))
