"""How a completion ends, said in one way for all engines.

Engines differ: some give the stop token, some cut it off; some stop at one end-of-sequence token, some at all that the
model names. `close_completion` makes of each what the embedded sampler would have given. Knows no engine.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from irpo_nemo.errors import ModelError
from irpo_nemo.sampling.sampler import Completion
from irpo_nemo.tokenization import decode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def read_stop_ids(model_folder: Path, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Tokens that end a completion: those that the folder's generation settings name, and the tokenizer's.

    As in transformers, config.json speaks for a folder without generation_config.json.

    Raises:
        ModelError: The file is not JSON.
    """
    candidates = (model_folder / "generation_config.json", model_folder / "config.json")
    path = next((path for path in candidates if path.exists()), None)
    try:
        named = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path else None
    except ValueError as error:
        raise ModelError(f"{path}: is not JSON ({error}). Copy the whole folder again.") from error
    return sorted({tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])} - {None})


def close_completion(
    token_ids: Sequence[int],
    finish_reason: str | None,
    *,
    stopped_by: object = None,
    stop_ids: Sequence[int],
    tokenizer: "PreTrainedTokenizerBase",
) -> Completion:
    """Cut behind the first stop token; put the one back that an engine took off.

    Args:
        token_ids: As the engine gave them.
        finish_reason: "stop" or "length"; with anything else the completion counts as failed.
        stopped_by: What the engine names as the cause of "stop": a token id, a text, or nothing.
        stop_ids: Tokens that end a completion.
        tokenizer: Of the model; its end-of-sequence token is the one that engines take off without a word.
    """
    ids = list(token_ids)
    end = min((ids.index(token) for token in stop_ids if token in ids), default=None)
    if end is not None:
        ids = ids[: end + 1]
    elif finish_reason == "stop":
        ids.append(stopped_by if isinstance(stopped_by, int) and stopped_by in stop_ids else tokenizer.eos_token_id)
    elif finish_reason != "length" or not ids:
        return Completion.failed(f"the engine ended it with {finish_reason!r} after {len(ids)} tokens")
    return Completion(
        token_ids=ids,
        text=decode(tokenizer, ids),
        finish_reason="stop" if ids[-1] in stop_ids else "length",
    )
