"""Text to token ids and back: how prompts begin and how completions end.

A prompt begins with exactly one beginning-of-sequence token when the tokenizer itself would add one (Llama), and with
none otherwise (Qwen). With chat_template "model" it is a user's turn in the tokenizer's own template, up to where the
model's turn begins; the template may write the beginning-of-sequence token or leave it to us. A completion has none and
ends with the end-of-sequence token. Special tokens spelled out in a data file stay plain text; within a chat template
they are an error. Knows no tasks and no models.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from irpo_nemo.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ANCHOR = ":"
"""A completion is encoded behind this, because a SentencePiece tokenizer puts a space before whatever it encodes."""


def load_tokenizer(folder: Path, *, trust_remote_code: bool) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of a Hugging Face folder.

    Raises:
        ModelError: The folder has no tokenizer that can be loaded, or one without an end-of-sequence token.
    """
    from transformers import AutoTokenizer

    if not folder.is_dir():
        raise ModelError(f"{folder}: no such folder. Set model.path to a Hugging Face folder.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"{folder}: its tokenizer cannot be loaded ({reason}). Copy the whole folder again."
        ) from error
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{folder}: its tokenizer has no eos_token. Name one in tokenizer_config.json.")
    return tokenizer


def encode_prompts(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], *, chat_template: str
) -> list[list[int]]:
    """Encode prompts; see `encode_prompt`."""
    if chat_template == "model":
        return _encode_turns(tokenizer, texts)
    beginning = _beginning(tokenizer)
    bos_token = tokenizer.bos_token if beginning else None
    for text in texts:
        if bos_token and text.startswith(bos_token):
            raise DataError(f"prompt {text[:40]!r}: starts with {bos_token}, which is added anyway. Leave it out.")
    return [beginning + ids for ids in _encode_plain(tokenizer, texts)]


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", text: str, *, chat_template: str = "none") -> list[int]:
    """Encode a prompt, with one beginning-of-sequence token if the model's family wants it.

    Args:
        chat_template: "none", or "model" for a user's turn in the tokenizer's own template.

    Raises:
        DataError: The text starts with that token already, or holds something that the tokenizer has no token for.
        ModelError: The tokenizer has no chat template, or one that cannot be used.
    """
    return encode_prompts(tokenizer, [text], chat_template=chat_template)[0]


def _encode_turns(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[list[int]]:
    """Encode each text as a user's turn, followed by what opens the model's turn.

    Raises:
        DataError: A text spells out a special token, which would end the turn.
        ModelError: The tokenizer has no chat template, or one that cannot be used.
    """
    name = tokenizer.name_or_path
    if tokenizer.chat_template is None:
        raise ModelError(
            f"{name}: its tokenizer has no chat template. Set task.chat_template=none, or model.path to a chat model."
        )
    marks = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    for text in texts:
        if found := [mark for mark in marks if mark in text]:
            raise DataError(
                f"prompt {text[:40]!r}: holds {found[0]}, which the model reads as a mark between turns. Delete it, or "
                "set task.chat_template=none."
            )
    rendered = [_render_turn(tokenizer, text) for text in texts]
    return [_with_one_beginning(tokenizer, ids) for ids in _encode(tokenizer, rendered, reads_marks=True)]


def _render_turn(tokenizer: "PreTrainedTokenizerBase", text: str) -> str:
    from jinja2 import TemplateError

    turns = [{"role": "user", "content": text}]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    except (TemplateError, ValueError, TypeError) as error:
        raise ModelError(
            f"{tokenizer.name_or_path}: its chat template cannot be used ({error}). Mend it, or set "
            "task.chat_template=none."
        ) from error


def _with_one_beginning(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> list[int]:
    """Add the beginning-of-sequence token that the template has left out; refuse a second one.

    Only a tokenizer that begins texts with it is held to one in all: for others it may open every turn (SmolLM2).
    """
    beginning = _beginning(tokenizer)
    if beginning and ids[:1] != beginning:
        ids = beginning + ids
    bos = tokenizer.bos_token_id
    if bos is not None and (ids[:2] == [bos, bos] or (beginning and ids.count(bos) > 1)):
        raise ModelError(
            f"{tokenizer.name_or_path}: its chat template writes {tokenizer.bos_token} more than once. Mend it, or set "
            "task.chat_template=none."
        )
    return ids


def encode_completions(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[list[int]]:
    """Encode completions; see `encode_completion`."""
    (anchor,) = _encode_plain(tokenizer, [_ANCHOR])
    anchored = _encode_plain(tokenizer, [_ANCHOR + text for text in texts])
    bodies = [ids[len(anchor) :] if ids[: len(anchor)] == anchor else None for ids in anchored]
    alone = iter(_encode_plain(tokenizer, [text for text, body in zip(texts, bodies, strict=True) if body is None]))
    return [(next(alone) if body is None else body) + [tokenizer.eos_token_id] for body in bodies]


def encode_completion(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Encode what follows a prompt, and end it with the end-of-sequence token.

    Raises:
        DataError: The text holds something that the tokenizer has no token for.
    """
    return encode_completions(tokenizer, [text])[0]


def decode(tokenizer: "PreTrainedTokenizerBase", token_ids: Sequence[int]) -> str:
    """The text of `token_ids`, without special tokens."""
    text: Any = tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text)


def _beginning(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """What the tokenizer itself puts before a text: nothing, or its beginning-of-sequence token."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("").input_ids[:1] == [bos] else []


def _encode_plain(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[list[int]]:
    """Encode without adding special tokens, and without reading any in the text."""
    return _encode(tokenizer, texts, reads_marks=False)


def _encode(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], *, reads_marks: bool) -> list[list[int]]:
    """Encode without adding special tokens; with `reads_marks`, those spelled out in a text become tokens."""
    if not texts:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=not reads_marks).input_ids
    unknown = tokenizer.unk_token_id
    for text, ids in zip(texts, encoded, strict=True):
        if unknown is not None and unknown in ids:
            raise DataError(f"text {text[:40]!r}: holds something the tokenizer has no token for. Use another model.")
    return [list(ids) for ids in encoded]
