"""IRPOModel's loss and gradients against transformers' LlamaForCausalLM with plain torch, and against TRL's DPOTrainer.

Both know nothing of this package; they read the same Hugging Face folder. References come from a second model, so pairs
are not at ln 2. The batch is incomplete: its mean is over 5 pairs, though 8 go through the model.
"""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from irpo_nemo.records import PreferencePair
from tests.distributed.probes import export_gradients
from tests.distributed.ranks import run_on_ranks
from tests.training.tiny import make_config, make_demonstrations, make_model_folder, make_pairs

BETA, NLL_WEIGHT = 0.1, 0.7
NUM_PAIRS = 5


def gradients_of(
    model: Path, references: list[tuple[float, float]], selections: list[list[int]], folder: Path
) -> list[dict[str, float]]:
    """On one rank: metrics of a batch of each selection of pairs; their gradients in `folder`/<i>."""
    from irpo_nemo.training.batches import (
        BatchOptions,
        Completion,
        Example,
        make_micro_batches,
        make_units,
        plan_micro_batches,
    )
    from irpo_nemo.training.session import load_policy

    config = make_config(loss={"beta": BETA, "nll_weight": NLL_WEIGHT}, use_distributed_optimizer=False)
    options = BatchOptions(max_tokens_per_micro_batch=200)
    policy = load_policy(config, config.training, model, num_examples=NUM_PAIRS)
    policy.prepare_for_training()
    examples = [
        Example(
            chosen=Completion(
                prompt=tuple(p.prompt_token_ids), completion=tuple(p.chosen_token_ids), reference_logprob=chosen
            ),
            rejected=Completion(
                prompt=tuple(p.prompt_token_ids), completion=tuple(p.rejected_token_ids), reference_logprob=rejected
            ),
        )
        for p, (chosen, rejected) in zip(make_pairs(NUM_PAIRS), references, strict=True)
    ]
    results = []
    for index, selection in enumerate(selections):
        units = make_units([examples[i] for i in selection], options)
        units.append(dataclasses.replace(units[0], weight=0.0))
        ((*plan,),) = plan_micro_batches(units, ranks=1, options=options)
        results.append(policy.forward_backward(make_micro_batches(plan, options)))
        export_gradients(policy, folder / str(index))
    return results


@dataclass(frozen=True)
class Theirs:
    """The same in plain torch: values of each pair, and the gradient of the mean loss."""

    losses: Tensor
    dpo: Tensor
    nll: Tensor
    gradients: dict[str, Tensor]


def demonstration_gradients(model: Path, folder: Path) -> dict[str, float]:
    """On each rank: metrics of one batch of plain fine-tuning on the chosen completions; gradients in `folder`."""
    from irpo_nemo.training.batches import BatchOptions, GlobalBatches, examples_of_demonstrations
    from irpo_nemo.training.parallel import data_parallel_rank, data_parallel_size
    from irpo_nemo.training.session import load_policy

    config = make_config(use_distributed_optimizer=False)
    policy = load_policy(config, config.training, model, num_examples=NUM_PAIRS)
    policy.prepare_for_training()
    batches = GlobalBatches(
        examples_of_demonstrations(make_demonstrations(NUM_PAIRS)),
        global_batch_size=8,
        options=BatchOptions(max_tokens_per_micro_batch=80),
        num_steps=1,
        seed=0,
        rank=data_parallel_rank(),
        ranks=data_parallel_size(),
    )
    metrics = policy.forward_backward(batches[0])
    export_gradients(policy, folder)
    return metrics


def summed_logprob(model: Any, prompt: list[int], completion: list[int]) -> Tensor:
    """One row alone, unpadded."""
    logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1)[torch.arange(len(completion)), torch.tensor(completion)].sum()


def pair_logprobs(model: Any, pair: PreferencePair) -> tuple[Tensor, Tensor]:
    return (
        summed_logprob(model, pair.prompt_token_ids, pair.chosen_token_ids),
        summed_logprob(model, pair.prompt_token_ids, pair.rejected_token_ids),
    )


def losses_in_plain_torch(model: Any, pairs: list[PreferencePair], references: list[tuple[float, float]]) -> Theirs:
    dpo, nll = [], []
    for pair, (reference_chosen, reference_rejected) in zip(pairs, references, strict=True):
        chosen, rejected = pair_logprobs(model, pair)
        margin = (chosen - reference_chosen) - (rejected - reference_rejected)
        dpo.append(F.softplus(-BETA * margin))
        nll.append(-chosen / len(pair.chosen_token_ids))
    losses = torch.stack(dpo) + NLL_WEIGHT * torch.stack(nll)
    model.zero_grad()
    losses.mean().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    return Theirs(losses.detach(), torch.stack(dpo).detach(), torch.stack(nll).detach(), gradients)


@dataclass(frozen=True)
class Setting:
    root: Path
    pairs: list[PreferencePair]
    references: list[tuple[float, float]]

    def load(self, model: str) -> Any:
        from transformers import LlamaForCausalLM

        return LlamaForCausalLM.from_pretrained(self.root / model, dtype=torch.float32)


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    root = tmp_path_factory.mktemp("parity")
    make_model_folder(root / "untied")
    make_model_folder(root / "tied", tied=True)
    make_model_folder(root / "reference", seed=1)
    setting = Setting(root, make_pairs(NUM_PAIRS), [])
    reference = setting.load("reference")
    with torch.no_grad():
        for pair in setting.pairs:
            chosen, rejected = pair_logprobs(reference, pair)
            setting.references.append((float(chosen), float(rejected)))
    return setting


def assert_gradients_equal(found_in: Path, expected: dict[str, Tensor]) -> None:
    found = load_file(found_in / "model.safetensors")
    assert found.keys() == expected.keys()
    for name in expected:
        error = (found[name] - expected[name]).norm() / expected[name].norm()
        assert error < 1e-5, f"{name}: {error:.1e}"


@pytest.mark.parametrize("model", ["untied", "tied"])
def test_loss_and_every_gradient_equal_transformers_with_plain_torch(
    setting: Setting, model: str, tmp_path: Path
) -> None:
    everything = [list(range(NUM_PAIRS))]
    ((ours,),) = run_on_ranks(gradients_of, 1, setting.root / model, setting.references, everything, tmp_path)
    theirs = losses_in_plain_torch(setting.load(model), setting.pairs, setting.references)
    assert (theirs.dpo - math.log(2)).abs().mean() > 0.05, "the policy is not the reference"
    assert ours["num_pairs"] == NUM_PAIRS
    assert ours["loss/total"] == pytest.approx(float(theirs.losses.mean()), rel=1e-5)
    assert ours["loss/dpo"] == pytest.approx(float(theirs.dpo.mean()), rel=1e-5)
    assert ours["loss/nll"] == pytest.approx(float(theirs.nll.mean()), rel=1e-5)
    assert_gradients_equal(tmp_path / "0", theirs.gradients)


@pytest.mark.parametrize("ranks", [1, 2])
def test_plain_fine_tuning_is_the_mean_over_completion_tokens(setting: Setting, ranks: int, tmp_path: Path) -> None:
    """The usual loss of supervised fine-tuning, as transformers computes it; ranks are data parallel."""
    ours, *others = run_on_ranks(demonstration_gradients, ranks, setting.root / "untied", tmp_path / "gradients")
    assert all(other == ours for other in others)
    model = setting.load("untied")
    total = sum(summed_logprob(model, pair.prompt_token_ids, pair.chosen_token_ids) for pair in setting.pairs)
    tokens = sum(len(pair.chosen_token_ids) for pair in setting.pairs)
    loss = -total / tokens
    loss.backward()
    assert ours["loss/total"] == ours["loss/nll"] == pytest.approx(loss.item(), rel=1e-5)
    assert ours["tokens/chosen"] == pytest.approx(tokens / NUM_PAIRS)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert_gradients_equal(tmp_path / "gradients", gradients)


def test_loss_and_gradients_equal_trl_with_one_pair_a_micro_batch(setting: Setting, tmp_path: Path) -> None:
    """One pair at a time, since TRL's NLL is a mean over the tokens of the batch, not over each completion's."""
    trl = pytest.importorskip("trl", reason="TRL is a development dependency")
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    trainer = make_trl_trainer(trl, setting, tmp_path / "trl")
    collate = DataCollatorForPreference(pad_token_id=0)
    alone = [[i] for i in range(NUM_PAIRS)]
    (ours,) = run_on_ranks(gradients_of, 1, setting.root / "untied", setting.references, alone, tmp_path)
    for index, pair in enumerate(setting.pairs):
        row = {
            "prompt_ids": pair.prompt_token_ids,
            "chosen_ids": pair.chosen_token_ids,
            "rejected_ids": pair.rejected_token_ids,
        }
        trainer.model.zero_grad()
        loss = trainer.compute_loss(trainer.model, collate([row]))
        loss.backward()
        assert ours[index]["loss/total"] == pytest.approx(loss.item(), rel=1e-5)
        gradients = {name: parameter.grad for name, parameter in trainer.model.named_parameters()}
        assert_gradients_equal(tmp_path / str(index), gradients)


def make_trl_trainer(trl: Any, setting: Setting, folder: Path) -> Any:
    """TRL's own trainer; its text data set is never used, since pairs are handed over as token ids."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "[EOS]": 1}, unk_token="[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", eos_token="[EOS]", pad_token="[UNK]")
    options = trl.DPOConfig(
        output_dir=str(folder),
        beta=BETA,
        loss_type=["sigmoid", "sft"],
        loss_weights=[1.0, NLL_WEIGHT],
        per_device_train_batch_size=1,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to=[],
    )
    return trl.DPOTrainer(
        model=setting.load("untied"),
        ref_model=setting.load("reference"),
        args=options,
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
        processing_class=tokenizer,
    )
