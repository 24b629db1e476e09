"""A model to start from where there is none: a Llama with random weights, and a tokenizer made from the task's texts.

Supervised fine-tuning on the task's demonstrations then makes M_0 of it.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from irpo_nemo.artifacts import TEMPORARY_SUFFIX, explain_os_errors, publish_folder, write_records
from irpo_nemo.config import IRPOConfig, ModelConfig
from irpo_nemo.errors import DataError
from irpo_nemo.records import Demonstration
from irpo_nemo.tasks import Task, load_task
from irpo_nemo.tokenization import encode_completions, encode_prompts

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

BOS_TOKEN, EOS_TOKEN, PAD_TOKEN = "<s>", "</s>", "<pad>"

WORD_PATTERN = r"[0-9]| ?\p{L}+(?: (?=[0-9]))?|[^\p{L}0-9\s](?: (?=[0-9]))?|\s"
"""How "words" cuts a text. A digit stands alone and never carries a space: the space before a number belongs to what
precedes it, the space before a word to the word. So "has 42" is "has ", "4", "2"; joining the pieces gives the text."""


def make_initial_model(config: IRPOConfig, folder: Path) -> None:
    """Write a Hugging Face folder with the tokenizer and random float32 weights, drawn from `config.seed`.

    Raises:
        DataError: The task's problems cannot be read, or it has no demonstrations to learn from.
        ArtifactError: The folder cannot be written.
    """
    tokenizer = make_tokenizer(config.model, _texts(load_task(config)))
    with explain_os_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = folder.with_name(f".{folder.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            _save_tokenizer(tokenizer, temporary)
            _save_random_llama(config, tokenizer, temporary)
            publish_folder(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_demonstrations(config: IRPOConfig, tokenizer: "PreTrainedTokenizerBase", path: Path) -> int:
    """Write the task's demonstrations as token ids; return their number.

    Raises:
        DataError: The task has none.
        ArtifactError: The file cannot be written.
    """
    texts = list(load_task(config).demonstrations())
    if not texts:
        raise DataError(
            f"task {config.task.name}: has no worked solutions, but sft.enabled=true learns from them. "
            'Add "solution" to its rows, or set sft.enabled=false and model.path to a Hugging Face folder.'
        )
    prompts = encode_prompts(tokenizer, [prompt for prompt, _ in texts], chat_template=config.task.chat_template)
    completions = encode_completions(tokenizer, [completion for _, completion in texts])
    demonstrations = [
        Demonstration(demonstration_id=str(row), prompt_token_ids=prompt, token_ids=completion)
        for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
    ]
    write_records(path, demonstrations, Demonstration)
    return len(demonstrations)


def _texts(task: Task) -> Iterator[str]:
    """Every text that the model will read or should write."""
    for prompt, completion in task.demonstrations():
        yield prompt
        yield completion
    for problem in [*task.train_problems(), *task.test_problems()]:
        yield task.prompt(problem)


def make_tokenizer(config: ModelConfig, texts: Iterable[str]) -> "PreTrainedTokenizerFast":
    """Make a tokenizer whose decoding gives back any text exactly: bytes stand in for what it has no token for."""
    from tokenizers import decoders, processors
    from transformers import PreTrainedTokenizerFast

    make = {"words": _make_word_tokenizer, "bpe": _make_bpe_tokenizer}[config.tokenizer]
    tokenizer = make(config, texts)
    tokenizer.decoder = decoders.ByteLevel()
    bos = (BOS_TOKEN, tokenizer.token_to_id(BOS_TOKEN))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS_TOKEN} $A", pair=f"{BOS_TOKEN} $A $B", special_tokens=[bos]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS_TOKEN,
        eos_token=EOS_TOKEN,
        pad_token=PAD_TOKEN,
        model_max_length=config.max_position_embeddings,
        clean_up_tokenization_spaces=False,
    )


def _make_word_tokenizer(config: ModelConfig, texts: Iterable[str]) -> "Tokenizer":  # noqa: ARG001
    """One token a word, digit and sign found in `texts`, most frequent first; all 256 bytes for anything else."""
    from collections import Counter

    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    cut = pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pre_tokenizer = pre_tokenizers.Sequence([cut, to_bytes])
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(piece for piece, _ in pre_tokenizer.pre_tokenize_str(text))
    by_frequency = sorted(counts, key=lambda piece: (-counts[piece], piece))
    tokens = dict.fromkeys([BOS_TOKEN, EOS_TOKEN, PAD_TOKEN, *sorted(to_bytes.alphabet()), *by_frequency])
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.add_special_tokens([BOS_TOKEN, EOS_TOKEN, PAD_TOKEN])
    return tokenizer


def _make_bpe_tokenizer(config: ModelConfig, texts: Iterable[str]) -> "Tokenizer":
    """Byte-level BPE of `tokenizer_vocab_size` tokens, digits apart."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=config.tokenizer_vocab_size,
        special_tokens=[BOS_TOKEN, EOS_TOKEN, PAD_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _save_tokenizer(tokenizer: "PreTrainedTokenizerFast", folder: Path) -> None:
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # transformers 5 writes a name that 4 does not know
    path.write_text(json.dumps(settings, indent=2), encoding="utf-8")


def _save_random_llama(config: IRPOConfig, tokenizer: "PreTrainedTokenizerFast", folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = config.model
    llama = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.ffn_hidden_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        max_position_embeddings=shape.max_position_embeddings,
        tie_word_embeddings=shape.tie_word_embeddings,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = LlamaForCausalLM(llama).to(torch.float32)
    model.save_pretrained(folder)
