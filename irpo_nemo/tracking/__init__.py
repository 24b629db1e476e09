"""Trackers: a run's curves in Weights & Biases and MLflow, through their own libraries.

Nothing in training knows of them. A process beside the stage mirrors the files that the run leaves anyway
(metrics.jsonl, evaluation.json) into one tracker run per IRPO run, and asks the tracker, or its own notes, what it
holds already. So a kill, a requeue or a lost network costs no point and doubles none, and what could not be sent is
sent by the next stage, or by `irpo track`. TensorBoard's events are training's own (`training.step_log`).

    points      what a run has to show, read from its files
    references  its artifacts: where they are and what they hold, never their content
    mirror      sends what a tracker does not hold yet
    follow      does so beside a stage
"""
