"""The embedded default sampler: a decoding loop over a transformers model, on a CPU or GPUs.

Why not `generate`: requests that share a prompt share its forward pass, rows leave the batch when they finish, and
every request brings its own randomness. A token is drawn by inverting the cumulative distribution at one uniform
number, and the numbers of a request come from its own seed; so a completion does not depend on what is sampled beside
it, except that another batch shape may round logits differently. Why not transformers' continuous batching: it has one
seed for all that it draws, so a part drawn again would be another part.

Shapes: rows = completions being decoded, prompts = distinct prompts of the batch, steps = tokens per completion.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import Tensor

from irpo_nemo.config import IRPOConfig
from irpo_nemo.errors import ConfigError, MachineError, ModelError
from irpo_nemo.sampling.gpus import list_gpus
from irpo_nemo.sampling.ordering import batch_numbers
from irpo_nemo.sampling.sampler import Completion, Sampler, SamplingRequest
from irpo_nemo.sampling.transformers_pool import TransformersPool
from irpo_nemo.tokenization import decode, load_tokenizer

_COMPACT_AT = 0.875
"""Rows are dropped from the batch when at most this share of them is still being decoded; dropping copies the cache."""
_NO_TOKEN = -1


def open_sampler(config: IRPOConfig, model_folder: Path) -> Sampler:
    """Load the model in this process, or in several.

    Raises:
        ModelError: The folder cannot be loaded.
        MachineError: One of several processes cannot start.
    """
    gpus = list_gpus() if torch.cuda.is_available() else []
    num_processes = config.sampler.transformers.num_processes or max(len(gpus), 1)
    if num_processes > 1:
        return TransformersPool(config, model_folder, num_processes=num_processes, gpus=gpus)
    return load_sampler(
        model_folder,
        dtype=config.sampler.dtype,
        batch_size=config.sampler.batch_size,
        trust_remote_code=config.model.trust_remote_code,
    )


def load_sampler(model_folder: Path, *, dtype: str, batch_size: int, trust_remote_code: bool) -> "TransformersSampler":
    """Load the model and the tokenizer of a Hugging Face folder.

    Raises:
        ModelError: The folder cannot be loaded.
    """
    tokenizer = load_tokenizer(model_folder, trust_remote_code=trust_remote_code)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch_dtype = {
        "auto": torch.bfloat16 if device.type == "cuda" else torch.float32,
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
    }[dtype]
    transformers.utils.logging.disable_progress_bar()
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            str(model_folder), dtype=torch_dtype, trust_remote_code=trust_remote_code, use_safetensors=True
        )
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{model_folder}: cannot be loaded ({reason}). Copy the whole folder again.") from error
    return TransformersSampler(model.to(device).eval(), tokenizer, batch_size=batch_size)


class TransformersSampler:
    """A transformers model on one device."""

    window = 0
    honours_seeds = True

    def __init__(
        self,
        model: "transformers.PreTrainedModel",
        tokenizer: "transformers.PreTrainedTokenizerBase",
        *,
        batch_size: int,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        self._stop_ids = torch.tensor(stop_token_ids(model, tokenizer), device=model.device)

    def generate(self, requests: Sequence[SamplingRequest]) -> list[Completion]:
        """Draw one completion for each request, in their order; see `Sampler`."""
        self._check_lengths(requests)
        completions: list[Completion | None] = [None] * len(requests)
        for numbers in batch_numbers(requests, self._batch_size):
            try:
                drawn = self._generate_batch([requests[number] for number in numbers])
            except torch.OutOfMemoryError as error:
                raise MachineError(
                    f"{self._model.device}: out of memory while sampling {len(numbers)} completions at once. "
                    f"Set sampler.batch_size below {self._batch_size}."
                ) from error
            for number, token_ids in zip(numbers, drawn, strict=True):
                completions[number] = self._finish(token_ids)
        return [completion for completion in completions if completion is not None]

    def close(self) -> None:
        """Free the device's memory."""
        del self._model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _check_lengths(self, requests: Sequence[SamplingRequest]) -> None:
        limit = self._model.config.max_position_embeddings
        for request in requests:
            length = len(request.prompt_token_ids)
            if length + request.max_new_tokens > limit:
                raise ConfigError(
                    f"sampling.max_new_tokens: is {request.max_new_tokens}, but the prompt of problem "
                    f"{request.problem_id} has {length} tokens and the model {limit} positions. "
                    f"Set it to at most {limit - length}."
                )

    def _finish(self, token_ids: list[int]) -> Completion:
        stopped = token_ids[-1] in self._stop_ids
        return Completion(
            token_ids=token_ids,
            text=decode(self._tokenizer, token_ids),
            finish_reason="stop" if stopped else "length",
        )

    @torch.inference_mode()
    def _generate_batch(self, requests: Sequence[SamplingRequest]) -> list[list[int]]:
        """Decode all requests together; return their token ids."""
        device = self._model.device
        cache = transformers.DynamicCache()
        logits, mask = self._read_prompts(requests, cache)
        rows = torch.arange(len(requests), device=device)  # which request each row of the batch decodes
        temperature = torch.tensor([request.temperature for request in requests], device=device)
        top_p = torch.tensor([request.top_p for request in requests], device=device)
        limits = torch.tensor([request.max_new_tokens for request in requests], device=device)
        uniforms = torch.from_numpy(draw_uniforms(requests)).to(device)
        drawn = torch.full(uniforms.shape, _NO_TOKEN, device=device)  # [requests, steps]
        alive = torch.ones(len(requests), dtype=torch.bool, device=device)  # [rows]
        for step in range(uniforms.shape[1]):
            tokens = choose_tokens(logits, temperature[rows], top_p[rows], uniforms[rows, step])
            drawn[rows, step] = torch.where(alive, tokens, _NO_TOKEN)
            alive &= ~torch.isin(tokens, self._stop_ids) & (step + 1 < limits[rows])
            num_alive = int(alive.sum())
            if num_alive == 0:
                break
            if num_alive <= _COMPACT_AT * len(rows):
                kept = alive.nonzero()[:, 0]
                rows, tokens, mask, alive = rows[kept], tokens[kept], mask[kept], alive[kept]
                cache.batch_select_indices(kept)
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
            logits = self._forward(tokens[:, None], mask, cache)
        return [[token for token in row if token != _NO_TOKEN] for row in drawn.tolist()]

    def _read_prompts(
        self, requests: Sequence[SamplingRequest], cache: "transformers.DynamicCache"
    ) -> tuple[Tensor, Tensor]:
        """Run each distinct prompt once and spread the result over the requests.

        Returns:
            Next-token logits [rows, vocab] and attention mask [rows, prompt], 0 on the padding at the left.
        """
        numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(map(_prompt_of, requests)))}
        length = max(map(len, numbers))
        device = self._model.device
        input_ids = torch.tensor([[0] * (length - len(prompt)) + list(prompt) for prompt in numbers], device=device)
        lengths = torch.tensor([len(prompt) for prompt in numbers], device=device)
        mask = (torch.arange(length, device=device) >= length - lengths[:, None]).long()
        logits = self._forward(input_ids, mask, cache)
        spread = torch.tensor([numbers[_prompt_of(request)] for request in requests], device=device)
        cache.batch_select_indices(spread)
        return logits[spread], mask[spread]

    def _forward(self, input_ids: Tensor, mask: Tensor, cache: "transformers.DynamicCache") -> Tensor:
        """Run the tokens `input_ids` [rows, new] behind the cache; return the logits of the last one, [rows, vocab]."""
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        output = self._model(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]


def _prompt_of(request: SamplingRequest) -> tuple[int, ...]:
    return tuple(request.prompt_token_ids)


def stop_token_ids(
    model: "transformers.PreTrainedModel", tokenizer: "transformers.PreTrainedTokenizerBase"
) -> list[int]:
    """Tokens that end a completion: those that the model's generation settings name, and the tokenizer's."""
    named = model.generation_config.eos_token_id
    return sorted({tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])} - {None})


def draw_uniforms(requests: Sequence[SamplingRequest]) -> np.ndarray:
    """One uniform number in [0, 1) for each token that each request may draw, float64 [requests, steps]."""
    steps = max(request.max_new_tokens for request in requests)
    return np.stack([np.random.Generator(np.random.PCG64(request.seed)).random(steps) for request in requests])


def choose_tokens(logits: Tensor, temperature: Tensor, top_p: Tensor, uniform: Tensor) -> Tensor:
    """Draw a token for each row, or take the likeliest where the temperature is 0.

    The drawn token is the first whose cumulative probability exceeds the row's uniform number, so its distribution is
    exactly softmax(logits / temperature), cut to the smallest set of likeliest tokens that holds `top_p` of it.

    Args:
        logits: [rows, vocab].
        temperature: [rows].
        top_p: [rows], in (0, 1].
        uniform: [rows] float64, in [0, 1).

    Returns:
        Token ids, [rows].
    """
    greedy = temperature == 0
    if bool(greedy.all()):
        return logits.argmax(dim=-1)
    divisor = torch.where(greedy, 1.0, temperature)
    probabilities = torch.softmax(logits.float() / divisor[:, None], dim=-1)
    if bool((top_p < 1).any()):
        probabilities = keep_top_p(probabilities, top_p)
    cumulative = probabilities.double().cumsum(dim=-1)
    target = (uniform * cumulative[:, -1])[:, None]
    drawn = torch.searchsorted(cumulative, target, right=True)[:, 0].clamp(max=logits.shape[1] - 1)
    return torch.where(greedy, logits.argmax(dim=-1), drawn)


def keep_top_p(probabilities: Tensor, top_p: Tensor) -> Tensor:
    """Set all but the smallest set of likeliest tokens that holds `top_p` to 0; [rows, vocab], not normalised."""
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    mass_before = ordered.cumsum(dim=-1) - ordered
    kept = torch.where(mass_before < top_p[:, None], ordered, 0.0)
    return torch.zeros_like(probabilities).scatter(-1, order, kept)
