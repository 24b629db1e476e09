"""What a run will need before it starts: memory of a GPU, time of a step and an iteration, GPU-hours, goodput.

Arithmetic only, from a model's shape, a layout and figures with their sources. Knows no torch, no files, no Slurm.
"""
