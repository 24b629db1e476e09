"""What the /v1/completions of different servers has in common, and how each is asked for token ids.

OpenAI's own protocol gives text only. vLLM (its pull request 22587) and SGLang (30917) add the ids on
`return_token_ids`. They fill what a request leaves out from the model's generation_config.json, top_k and repetition
penalty among it, so those are always said. trtllm-serve 1.2 gives ids in place of the text with `detokenize` off, and
refuses fields that it does not know. `DIALECTS` are tried in order until a server understands one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from irpo_nemo.sampling.endings import close_completion
from irpo_nemo.sampling.sampler import Completion, SamplingRequest
from irpo_nemo.tokenization import decode, encode_completion

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NUM_SEEDS = 2**63
"""Servers read a seed as a signed 64-bit integer."""


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """One way to ask and to read the answer."""

    name: str
    prompt_as_ids: bool = True
    gives_ids: bool = True
    takes_stop_ids: bool = True
    extras: dict[str, Any] = field(default_factory=dict)

    def body(
        self,
        request: SamplingRequest,
        *,
        model: str,
        stop_ids: Sequence[int],
        tokenizer: "PreTrainedTokenizerBase",
    ) -> dict[str, Any]:
        """The JSON to send for one completion."""
        prompt: list[int] | str = request.prompt_token_ids
        if not self.prompt_as_ids:
            prompt = decode(tokenizer, request.prompt_token_ids)
        body = {
            "model": model,
            "prompt": prompt,
            "n": 1,
            "max_tokens": request.max_new_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed % _NUM_SEEDS,
            **self.extras,
        }
        if self.takes_stop_ids:
            body["stop_token_ids"] = list(stop_ids)
        return body

    def understands(self, choice: dict[str, Any]) -> bool:
        """Whether a probe's answer has what this dialect asked for."""
        return _are_ids(choice.get("token_ids")) if self.gives_ids else isinstance(choice.get("text"), str)

    def read(
        self,
        choice: dict[str, Any],
        request: SamplingRequest,
        *,
        stop_ids: Sequence[int],
        tokenizer: "PreTrainedTokenizerBase",
    ) -> Completion:
        """The completion in an answer's choice; a failed one where the answer makes no sense."""
        if mistake := self._find_mistake(choice, request):
            return Completion.failed(mistake)
        token_ids = choice["token_ids"] if self.gives_ids else encode_completion(tokenizer, choice["text"])[:-1]
        return close_completion(
            token_ids,
            choice.get("finish_reason"),
            stopped_by=choice.get("stop_reason", choice.get("matched_stop")),
            stop_ids=stop_ids,
            tokenizer=tokenizer,
        )

    def _find_mistake(self, choice: dict[str, Any], request: SamplingRequest) -> str | None:
        if not self.understands(choice):
            return f"the answer has no {'token_ids' if self.gives_ids else 'text'}"
        read = (choice.get("usage") or {}).get("prompt_tokens")
        if read is not None and read != len(request.prompt_token_ids):
            return f"the server read {read} prompt tokens, but there are {len(request.prompt_token_ids)}"
        return None


def _are_ids(value: object) -> bool:
    return isinstance(value, list) and set(map(type, value)) <= {int}


DIALECTS = (
    Dialect(
        name="return_token_ids",
        extras={"return_token_ids": True, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0},
    ),
    Dialect(
        name="detokenize",
        extras={"detokenize": False, "include_stop_str_in_output": True, "top_k": 0},
    ),
    Dialect(name="text", gives_ids=False, takes_stop_ids=False),
    Dialect(name="text prompts", gives_ids=False, takes_stop_ids=False, prompt_as_ids=False),
)
