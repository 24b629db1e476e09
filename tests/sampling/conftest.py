from pathlib import Path

import pytest

from irpo_nemo.config import (
    ArithmeticConfig,
    EvaluationConfig,
    IRPOConfig,
    ModelConfig,
    SamplerConfig,
    SamplingConfig,
    TaskConfig,
)
from irpo_nemo.model_zero import make_initial_model


def make_config(batch_size: int = 16, problems_per_part: int = 4) -> IRPOConfig:
    """Ten train and six test problems for a model of two layers."""
    return IRPOConfig(
        task=TaskConfig(arithmetic=ArithmeticConfig(num_train_problems=10, num_test_problems=6, num_demonstrations=50)),
        model=ModelConfig(hidden_size=32, num_layers=2, ffn_hidden_size=64, max_position_embeddings=512),
        sampling=SamplingConfig(num_candidates=3, temperature=[0.8, 1.3], max_new_tokens=12),
        evaluation=EvaluationConfig(num_samples=2, temperature=0.9),
        sampler=SamplerConfig(batch_size=batch_size, problems_per_part=problems_per_part),
    )


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights, whose samples are noise and seldom end early."""
    folder = tmp_path_factory.mktemp("models") / "initial"
    make_initial_model(make_config(), folder)
    return folder
