"""Run what is left of a plan as a chain of Slurm jobs.

chain: what the jobs are; scripts: their text; queue: what Slurm is asked; submit: starting and ending a chain. The
jobs call `irpo stage`, and manifests decide what is done, so a chain that is submitted again skips that. What happens
on the nodes stands in slurm/supervise.sh.
"""
