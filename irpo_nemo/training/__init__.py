"""Training the policy with Megatron-core under NeMo. The only room that imports megatron and nemo."""
