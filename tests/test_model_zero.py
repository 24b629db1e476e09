import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from irpo_nemo.artifacts import hash_model_folder, read_records
from irpo_nemo.config import ArithmeticConfig, IRPOConfig, ModelConfig, TaskConfig
from irpo_nemo.errors import DataError
from irpo_nemo.model_zero import make_initial_model, make_tokenizer, write_demonstrations
from irpo_nemo.records import Demonstration
from irpo_nemo.tasks import load_task
from irpo_nemo.tokenization import decode, encode_completion, encode_prompt, load_tokenizer

TEXTS = [
    "Ada has 42 pears.\nFinal answer: 42",
    "  two  spaces, 1 000 and 3.5\t%\r\n\n",
    "Zoë's café… 🎉 数字42个 \N{NO-BREAK SPACE}x",
    "<s> </s> <pad>",
    "7",
    " 7",
    "a 7 b",
    "",
]


def tiny_config(seed: int = 0, **model: object) -> IRPOConfig:
    arithmetic = ArithmeticConfig(num_train_problems=20, num_test_problems=10, num_demonstrations=200)
    shape: dict[str, object] = {"hidden_size": 32, "num_layers": 2, "ffn_hidden_size": 64, **model}
    return IRPOConfig(seed=seed, task=TaskConfig(arithmetic=arithmetic), model=ModelConfig(**shape))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["words", "bpe"])
@pytest.mark.parametrize("text", TEXTS)
def test_any_text_comes_back_exactly(kind: str, text: str) -> None:
    tokenizer = make_tokenizer(ModelConfig(tokenizer=kind, tokenizer_vocab_size=300), ["Ada has 1 pear."])
    assert decode(tokenizer, encode_completion(tokenizer, text)) == text
    assert decode(tokenizer, encode_prompt(tokenizer, text.removeprefix("<s>"))) == text.removeprefix("<s>")


@pytest.mark.parametrize("kind", ["words", "bpe"])
def test_digits_are_tokens_of_their_own(kind: str) -> None:
    tokenizer = make_tokenizer(ModelConfig(tokenizer=kind), ["Ada has 123 pears, 45-6=39."] * 9)
    pieces = [tokenizer.decode([token]) for token in encode_completion(tokenizer, "Ada has 123 pears, 45-6=39.")]
    assert [piece for piece in pieces if any(map(str.isdigit, piece))] == list("12345639")


def test_words_make_one_token_each_and_digits_never_carry_a_space() -> None:
    text = "Ada has 42 pears.\nFinal answer: 42"
    tokenizer = make_tokenizer(ModelConfig(), [text])
    pieces = [tokenizer.decode([token]) for token in encode_completion(tokenizer, text)]
    assert pieces == ["Ada", " has ", "4", "2", " pears", ".", "\n", "Final", " answer", ": ", "4", "2", "</s>"]


def test_bpe_has_the_vocabulary_size_asked_for() -> None:
    config = tiny_config(tokenizer="bpe", tokenizer_vocab_size=320)
    texts = [completion for pair in load_task(config).demonstrations() for completion in pair]
    assert len(make_tokenizer(config.model, texts)) == 320


def test_folder_loads_and_has_the_shape_asked_for(tmp_path: Path) -> None:
    config = tiny_config()
    make_initial_model(config, tmp_path / "initial")
    tokenizer = load_tokenizer(tmp_path / "initial", trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "initial")
    assert (model.config.hidden_size, model.config.num_hidden_layers, model.config.vocab_size) == (
        32,
        2,
        len(tokenizer),
    )
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert {weight.dtype for weight in load_file(tmp_path / "initial" / "model.safetensors").values()} == {
        torch.float32
    }
    assert [path.name for path in tmp_path.iterdir()] == ["initial"]


def test_any_transformers_version_knows_the_tokenizer_class(tmp_path: Path) -> None:
    make_initial_model(tiny_config(), tmp_path / "initial")
    settings = json.loads((tmp_path / "initial" / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_same_seed_same_model_other_seed_other_model(tmp_path: Path) -> None:
    torch.manual_seed(5)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make_initial_model(tiny_config(seed), tmp_path / name)
    a, b, c = (hash_model_folder(tmp_path / name) for name in "abc")
    assert a == b != c


def test_drawing_weights_leaves_the_random_state_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    make_initial_model(tiny_config(), tmp_path / "initial")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_are_stored_once(tmp_path: Path, tied: bool) -> None:
    make_initial_model(tiny_config(tie_word_embeddings=tied), tmp_path / "initial")
    assert ("lm_head.weight" in load_file(tmp_path / "initial" / "model.safetensors")) is not tied


def test_demonstrations_are_the_tasks_texts(tmp_path: Path) -> None:
    config = tiny_config()
    make_initial_model(config, tmp_path / "initial")
    tokenizer = load_tokenizer(tmp_path / "initial", trust_remote_code=False)
    assert write_demonstrations(config, tokenizer, tmp_path / "demonstrations.parquet") == 200
    records = read_records(tmp_path / "demonstrations.parquet", Demonstration)
    assert len({record.demonstration_id for record in records}) == 200
    for record, (prompt, completion) in zip(records, load_task(config).demonstrations(), strict=True):
        assert record.prompt_token_ids[0] == tokenizer.bos_token_id
        assert record.token_ids[-1] == tokenizer.eos_token_id
        assert decode(tokenizer, record.prompt_token_ids) == prompt
        assert decode(tokenizer, record.token_ids) == completion


def test_every_word_of_the_task_is_one_token(tmp_path: Path) -> None:
    """No text of the task falls back to bytes, so test prompts look to the model as demonstrations do."""
    config = tiny_config()
    make_initial_model(config, tmp_path / "initial")
    tokenizer = load_tokenizer(tmp_path / "initial", trust_remote_code=False)
    task = load_task(config)
    for problem in task.test_problems():
        pieces = tokenizer.convert_ids_to_tokens(encode_prompt(tokenizer, task.prompt(problem)))
        assert not [piece for piece in pieces if len(piece) == 1 and piece.isalpha() and piece not in "Ċ"]


def test_a_task_without_worked_solutions_is_an_error(tmp_path: Path) -> None:
    data = tmp_path / "mine.jsonl"
    data.write_text('{"question": "2+3?", "answer": "5"}\n')
    config = IRPOConfig(task=TaskConfig(name="jsonl", train_path=str(data), test_path=str(data)))
    tokenizer = make_tokenizer(config.model, TEXTS)
    with pytest.raises(DataError) as error:
        write_demonstrations(config, tokenizer, tmp_path / "demonstrations.parquet")
    assert str(error.value) == (
        'task jsonl: has no worked solutions, but sft.enabled=true learns from them. Add "solution" to its rows, '
        "or set sft.enabled=false and model.path to a Hugging Face folder."
    )
