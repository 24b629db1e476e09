"""Every mistake is one exact line, and all of them are reported together."""

import ast
from importlib.util import find_spec
from pathlib import Path

import pytest

import irpo_nemo
from irpo_nemo.config import IRPOConfig, LossConfig, SFTConfig, value_at, walk_fields
from irpo_nemo.config_checks import check_relations
from irpo_nemo.config_files import config_names, dump_config, load_config
from irpo_nemo.errors import ConfigError
from irpo_nemo.pipeline import find_file_mistakes

PINNED = [
    "sft.max_steps=500",
    "training.global_batch_size=16",
    "training.optimizer.learning_rate=2e-4",
]
"""What these tests count on, whatever the quickstart is tuned to."""


def mistakes_of(*overrides: str, config: str = "quickstart") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(config, [*PINNED, *overrides], also_check=find_file_mistakes)
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss.bata=0.1", "quickstart: loss.bata: no such key. Did you mean loss.beta?"),
        (
            "training.lerning_rate=1e-6",
            "quickstart: training.lerning_rate: no such key. Did you mean training.optimizer.learning_rate?",
        ),
        ("xyzzy=1", "quickstart: xyzzy: no such key."),
        ("loss.beta=0", "quickstart: loss.beta: is 0.0, but must be greater than 0.0"),
        ("sampling.top_p=1.5", "quickstart: sampling.top_p: is 1.5, but must be at most 1.0"),
        ("num_iterations=-1", "quickstart: num_iterations: is -1, but must be at least 0"),
        ("sampling.temperature=[0.8,0]", "quickstart: sampling.temperature: is 0.0, but must be greater than 0.0"),
        ("sampling.temperature=[]", "quickstart: sampling.temperature: is empty, but needs one value at least"),
        ("seed=many", "quickstart: seed: is 'many', but int is wanted"),
        ("loss=3", None),
        ("sampling=3", "quickstart: sampling: is 3, but a section with keys is wanted"),
        (
            "pairing.cap=losser",
            "quickstart: pairing.cap: is losser, but must be one of wrap_around, losers. Did you mean losers?",
        ),
        ("name=a/b", "quickstart: name: is 'a/b', but must be a folder name without /"),
        (
            "sft.enabled=false",
            "quickstart: model.path: is null; name a Hugging Face folder, or set sft.enabled=true to train random "
            "weights",
        ),
        (
            "launcher.ranks=3",
            "quickstart: launcher.ranks: is 3, but must be a multiple of tensor_model_parallel_size x "
            "pipeline_model_parallel_size x context_parallel_size = 2",
        ),
        (
            "parallel.virtual_pipeline_model_parallel_size=2",
            "quickstart: parallel.virtual_pipeline_model_parallel_size: is 2, but needs pipeline_model_parallel_size "
            "of at least 2; raise that, or set it to 1",
        ),
        (
            "parallel={tensor_model_parallel_size:1,sequence_parallel:true}",
            "quickstart: parallel.sequence_parallel: is true, but needs tensor_model_parallel_size of at least 2; "
            "raise that, or set it to false",
        ),
        (
            "training.optimizer.min_learning_rate=1",
            "quickstart: training.optimizer.min_learning_rate: is 1.0, but must be at most learning_rate = 0.0002",
        ),
        (
            "sft.optimizer.warmup_steps=500",
            "quickstart: sft.optimizer.warmup_steps: is 500, but must be less than max_steps = 500",
        ),
        (
            "task.arithmetic.min_operations=9",
            "quickstart: task.arithmetic.min_operations: is 9, but must be at most max_operations = 5",
        ),
        (
            "sampling.max_new_tokens=1024",
            "quickstart: sampling.max_new_tokens: is 1024, but prompt and completion share "
            "model.max_position_embeddings = 1024",
        ),
        (
            "model.hidden_size=100",
            "quickstart: model.hidden_size: is 100, but must be a multiple of 2 x num_attention_heads = 8",
        ),
        (
            "model.num_key_value_heads=1",
            "quickstart: parallel.tensor_model_parallel_size: is 2, but must divide num_key_value_heads = 1 "
            "(from model)",
        ),
        (
            "pairing.pairs_path=absent.parquet",
            "quickstart: pairing.pairs_path: absent.parquet is not a file; name the pairs.parquet of an iteration",
        ),
        (
            "sft.watched_pairs_path=absent.parquet",
            "quickstart: sft.watched_pairs_path: absent.parquet is not a file; name the pairs.parquet of an iteration",
        ),
        (
            "task.prompt_template=hello",
            "quickstart: task.prompt_template: is 'hello', but must hold {question}",
        ),
    ],
)
def test_a_mistake_is_one_line(override: str, message: str | None) -> None:
    mistakes = mistakes_of(override)
    assert len(mistakes) == 1
    if message is not None:
        assert mistakes == [message]


def test_two_mistakes_are_both_reported() -> None:
    assert mistakes_of("loss.bata=0.1", "loss.beta=-1") == [
        "quickstart: loss.bata: no such key. Did you mean loss.beta?",
        "quickstart: loss.beta: is -1.0, but must be greater than 0.0",
    ]


def test_given_pairs_are_for_training(tmp_path: Path) -> None:
    (tmp_path / "pairs.parquet").touch()
    assert mistakes_of(f"pairing.pairs_path={tmp_path}/pairs.parquet", "num_iterations=0") == [
        "quickstart: pairing.pairs_path: is set, but num_iterations=0 trains nothing; leave it out or raise "
        "num_iterations",
    ]


def test_pairs_are_watched_by_fine_tuning(tmp_path: Path) -> None:
    (tmp_path / "pairs.parquet").touch()
    (tmp_path / "model").mkdir()
    mistakes = mistakes_of(
        f"sft.watched_pairs_path={tmp_path}/pairs.parquet", "sft.enabled=false", f"model.path={tmp_path}/model"
    )
    assert mistakes[0] == (
        "quickstart: sft.watched_pairs_path: is set, but sft.enabled=false; leave it out or set sft.enabled=true"
    )


def test_tensor_parallel_must_divide_heads() -> None:
    layout = ["parallel.tensor_model_parallel_size=3", "launcher.ranks=3"]
    source = "(from model)"
    assert mistakes_of(*layout) == [
        f"quickstart: parallel.tensor_model_parallel_size: is 3, but must divide num_attention_heads = 4 {source}",
        f"quickstart: parallel.tensor_model_parallel_size: is 3, but must divide num_key_value_heads = 2 {source}",
    ]


def test_pipeline_parallel_must_divide_layers() -> None:
    layout = ["parallel.tensor_model_parallel_size=1", "parallel.pipeline_model_parallel_size=2"]
    assert mistakes_of(*layout, "model.num_layers=3") == [
        "quickstart: parallel.pipeline_model_parallel_size: is 2, but must divide num_layers = 3 (from model)"
    ]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["training.attention=transformer_engine"],
            "training.attention: is transformer_engine, which knows no shared prompts; set "
            "training.share_prompts=false, or training.attention=groups",
        ),
        (
            [
                "training.attention=transformer_engine",
                "training.share_prompts=false",
                "parallel={tensor_model_parallel_size:1,context_parallel_size:2}",
            ],
            "training.attention: is transformer_engine, which context parallel splits only where each sequence has its "
            "own row; set training.pack=false, or training.attention=groups",
        ),
        (
            ["sft.fp8=hybrid"],
            "sft.fp8: is hybrid, but needs sft.bf16=true beside it; set that, or fp8=null",
        ),
    ],
)
def test_what_transformer_engine_cannot_do_is_said_with_what_can(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("quickstart", [*PINNED, *overrides])
    assert str(caught.value) == f"quickstart: {message}"


@pytest.mark.skipif(find_spec("transformer_engine") is not None, reason="Transformer Engine is installed")
def test_training_with_transformer_engine_needs_it_installed() -> None:
    assert mistakes_of("training.attention=transformer_engine", "training.share_prompts=false") == [
        "quickstart: training.attention, training.fp8: are transformer_engine and None, but Transformer Engine is not "
        "installed here; install transformer-engine[pytorch], or set attention=groups and fp8=null"
    ]


def test_virtual_stages_must_divide_the_layers_of_a_stage() -> None:
    layout = (
        "parallel={tensor_model_parallel_size:1,pipeline_model_parallel_size:2,virtual_pipeline_model_parallel_size:3}"
    )
    assert mistakes_of(layout, "model.num_layers=4") == [
        "quickstart: parallel.virtual_pipeline_model_parallel_size: is 3, but must divide num_layers / "
        "pipeline_model_parallel_size = 2 (from model)"
    ]


def write_model_config(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(text)
    return folder


def test_the_shape_of_a_model_folder_is_read_from_its_config(tmp_path: Path) -> None:
    shape = '"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 6, "intermediate_size": 128'
    folder = write_model_config(tmp_path / "m", f"{{{shape}}}")
    layout = ["parallel.tensor_model_parallel_size=4", "launcher.ranks=4"]
    source = f"(from {folder}/config.json)"
    assert mistakes_of(f"model.path={folder}", *layout) == [
        f"quickstart: parallel.tensor_model_parallel_size: is 4, but must divide num_attention_heads = 6 {source}",
        f"quickstart: parallel.tensor_model_parallel_size: is 4, but must divide num_key_value_heads = 6 {source}",
    ]


def test_a_model_folder_must_be_one(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert mistakes_of(f"model.path={tmp_path}/empty") == [
        f"quickstart: model.path: {tmp_path}/empty has no config.json; name a Hugging Face folder"
    ]
    assert mistakes_of(f"model.path={tmp_path}/absent") == [
        f"quickstart: model.path: {tmp_path}/absent is not a folder; name a Hugging Face folder on this machine"
    ]
    folder = write_model_config(tmp_path / "cut", '{"hidden_size": ')
    assert mistakes_of(f"model.path={folder}")[0].startswith(f"quickstart: model.path: {folder}/config.json cannot be")
    folder = write_model_config(tmp_path / "list", "[]")
    assert mistakes_of(f"model.path={folder}") == [
        f"quickstart: model.path: {folder}/config.json is not a JSON object; download the model again"
    ]


def test_problem_files_are_read_before_anything_starts(tmp_path: Path) -> None:
    good, cut = tmp_path / "good.jsonl", tmp_path / "cut.jsonl"
    good.write_text('{"question": "2 + 2?", "answer": "4"}\n')
    cut.write_text('{"question": "2 + 2?", "answer": "4"}\n{"question": "3 +')
    model = write_model_config(
        tmp_path / "m",
        '{"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}',
    )
    files = [f"model.path={model}", f"task.train_path={cut}", f"task.test_path={tmp_path}/absent.jsonl"]
    first, second = mistakes_of("task.name=jsonl", "sft.enabled=false", *files)
    assert first.startswith(f"quickstart: {cut}:2: is not JSON (")
    assert second.startswith(f"quickstart: {tmp_path}/absent.jsonl: no such file.")


def test_an_unknown_configuration_names_the_near_miss() -> None:
    (line,) = mistakes_of(config="quikstart")
    assert line.startswith("quikstart: no such configuration. Did you mean quickstart? Known: ")
    (line,) = mistakes_of(config="absent.yaml")
    assert line.startswith("absent.yaml: no such file. Give a path, or one of: ")


def test_an_unknown_group_choice_names_the_choices() -> None:
    (line,) = mistakes_of("loss=ipro")
    assert line.startswith("quickstart: ")
    assert "irpo" in line


def test_an_override_without_a_value_is_refused() -> None:
    assert mistakes_of("seed") == ["seed: is not an override; wanted key=value, for example seed=1."]


def test_yaml_that_does_not_parse_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("loss: [1\n")
    (line,) = mistakes_of(config=str(path))
    assert line.startswith(f"{path}: ")


def test_a_group_choice_changes_the_loss() -> None:
    assert load_config("quickstart", ["loss=dpo"]).loss == LossConfig(nll_weight=0.0)
    assert load_config("quickstart", ["loss=sft_on_chosen"]).loss == LossConfig(dpo_weight=0.0)


def test_a_dumped_configuration_reads_back_the_same(tmp_path: Path) -> None:
    config = load_config("quickstart", ["seed=3", "task.max_train_problems=5", "sampling.temperature=[0.7,1.0]"])
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    assert load_config(str(path)) == config


def test_the_last_temperature_repeats() -> None:
    config = load_config("quickstart", ["sampling.temperature=[0.8,1.3]"])
    assert [config.temperature_of(t) for t in range(4)] == [0.8, 1.3, 1.3, 1.3]


def test_defaults_alone_lack_only_a_model() -> None:
    assert check_relations(IRPOConfig(sft=SFTConfig(enabled=True))) == []


def test_every_key_is_read_somewhere() -> None:
    """An option that nothing reads is a lie: each leaf's name is an attribute that the package looks up."""
    package = Path(irpo_nemo.__file__).parent
    read = set()
    for path in package.rglob("*.py"):
        if path.name not in ("config.py", "config_checks.py", "config_files.py"):
            read |= {
                node.attr
                for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                if isinstance(node, ast.Attribute)
            }
    through_config = {"run_root", "temperature"}
    """Read by the properties run_folder and temperature_of."""
    unread = [key for key, _, _ in walk_fields(IRPOConfig) if key.rsplit(".", 1)[-1] not in read | through_config]
    assert unread == []


def test_every_key_has_a_value_in_a_loaded_configuration() -> None:
    config = load_config("quickstart")
    for key, _, _ in walk_fields(IRPOConfig):
        value_at(config, key)


def test_conf_is_not_empty() -> None:
    assert {"quickstart", "gsm8k", "gsm8k_tiny", "jsonl"} <= set(config_names())
