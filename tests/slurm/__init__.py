"""Chains on a real Slurm cluster that the tests start on this machine."""
