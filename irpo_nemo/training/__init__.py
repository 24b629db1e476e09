"""Training the policy with Megatron-core under NeMo. The only room that imports megatron and nemo."""

import warnings

# We build torch's norms and optimizers on purpose (`gpt`, `optimizer`); Megatron-core 0.16 says so at every import.
warnings.filterwarnings("ignore", message="Transformer Engine and Apex are not installed")
warnings.filterwarnings("ignore", message="Apex is not installed. Falling back to Torch Norm")
# And what it does to its own default.
warnings.filterwarnings("ignore", message="full scope is deprecated. Use empty cuda_graph_scope")
