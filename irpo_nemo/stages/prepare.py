"""task ─► what M_0 is made from: an initial model with random weights where none is named, and the demonstrations."""

from irpo_nemo.config import IRPOConfig
from irpo_nemo.model_zero import make_initial_model, write_demonstrations
from irpo_nemo.pipeline import initial_model_of
from irpo_nemo.run_folder import RunFolder
from irpo_nemo.stages.frame import StageResult
from irpo_nemo.tokenization import load_tokenizer


def run(config: IRPOConfig, iteration: int | None) -> StageResult:  # noqa: ARG001
    """Make the initial model if the run needs one, and write the demonstrations in its tokens."""
    folder = RunFolder(config.run_folder).model_zero
    if config.model.path is None:
        make_initial_model(config, folder.initial)
    tokenizer = load_tokenizer(initial_model_of(config), trust_remote_code=config.model.trust_remote_code)
    num_demonstrations = write_demonstrations(config, tokenizer, folder.demonstrations)
    counts = {"demonstrations": num_demonstrations, "vocabulary": len(tokenizer)}
    summary = [f"{num_demonstrations} demonstrations", f"{len(tokenizer)} tokens in the vocabulary"]
    return StageResult(counts={**counts, "summary": summary}, seconds={})
