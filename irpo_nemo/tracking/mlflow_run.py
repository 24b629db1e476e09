"""One MLflow run. Only importer of mlflow.

The store is asked which steps of which metric it holds, so a point is logged once. The run is found by a tag.
"""

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from irpo_nemo.config import IRPOConfig, value_at, walk_fields
from irpo_nemo.run_folder import RunFolder
from irpo_nemo.tracking.points import Point
from irpo_nemo.tracking.references import Reference

RUN_TAG = "irpo.run"
_METRICS_PER_REQUEST = 1000
_PARAMS_PER_REQUEST = 100
"""What MLflow's log_batch takes."""


class MLflowRun:
    """An MLflow run, created or found."""

    def __init__(self, config: IRPOConfig, run_id: str) -> None:
        """Find the run tagged `run_id`, or create it.

        Raises:
            mlflow.exceptions.MlflowException: The store does not answer.
        """
        uri = tracking_uri(config)
        if "://" not in uri:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3 asks before it uses a folder
            os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # to files means that nothing leaves the machine
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=uri)
        self._run_id = self._find(config, run_id) or self._create(config, run_id)
        self._held = self._read_held()

    def send(self, points: Sequence[Point]) -> None:
        """Log what the store does not hold yet."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        missing = [
            Metric(name, value, now, point.x)
            for point in points
            for name, value in point.values.items()
            if point.x not in self._held.get(name, ())
        ]
        for batch in _split(missing, _METRICS_PER_REQUEST):
            self._client.log_batch(self._run_id, metrics=batch)
            for metric in batch:
                self._held.setdefault(metric.key, set()).add(metric.step)

    def refer_to(self, references: Iterable[Reference]) -> None:
        """Tag the run with the place and digest of each of its artifacts."""
        for reference in references:
            self._client.set_tag(self._run_id, f"irpo.artifact.{reference.name}.uri", reference.uri)
            self._client.set_tag(self._run_id, f"irpo.artifact.{reference.name}.sha256", reference.digest)

    def close(self, *, is_complete: bool) -> None:
        """Say that the run is finished, if it is."""
        if is_complete:
            self._client.set_terminated(self._run_id)

    def _find(self, config: IRPOConfig, run_id: str) -> str | None:
        experiment = self._client.get_experiment_by_name(config.tracking.mlflow.experiment)
        if experiment is None:
            return None
        runs = self._client.search_runs([experiment.experiment_id], f"tags.`{RUN_TAG}` = '{run_id}'")
        return str(runs[0].info.run_id) if runs else None

    def _create(self, config: IRPOConfig, run_id: str) -> str:
        name = config.tracking.mlflow.experiment
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(name)
        run = self._client.create_run(experiment_id, run_name=config.name, tags={RUN_TAG: run_id})
        self._log_params(str(run.info.run_id), config)
        return str(run.info.run_id)

    def _log_params(self, run_id: str, config: IRPOConfig) -> None:
        """MLflow never changes a param, so they say how the run began."""
        from mlflow.entities import Param

        params = [Param(key, str(value_at(config, key))) for key, _, _ in walk_fields(IRPOConfig)]
        for batch in _split(params, _PARAMS_PER_REQUEST):
            self._client.log_batch(run_id, params=batch)

    def _read_held(self) -> dict[str, set[int]]:
        names = self._client.get_run(self._run_id).data.metrics
        return {name: {m.step for m in self._client.get_metric_history(self._run_id, name)} for name in names}


def tracking_uri(config: IRPOConfig) -> str:
    """The store: as set, as MLflow's own variable says, or a folder of the run."""
    given = config.tracking.mlflow.uri or os.environ.get("MLFLOW_TRACKING_URI")
    return given or str((RunFolder(config.run_folder).tracking / "mlflow").resolve())


def _split(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
