"""An Airflow DAG that runs `datarater batch` once a day for the day that has just ended.

Copy this file to the DAG folder of Airflow 3.2 or newer with its `cncf.kubernetes` provider. Set
`start_date` to the first night: Airflow catches up on every day since. Two Airflow variables
configure the DAG: `datarater_image` (an image of deploy/Dockerfile, by its digest) and
`datarater_batch_config` (the address of the batch's YAML file). Put further flags, such as Beam's
for Dataflow, in that file. With its section `beam_score`, the batch first scores in a job of its
own, such as one on GPUs.

Airflow runs missed nights when it is back, each for its own date, one at a time. A batch takes
only files that no earlier batch has taken, so a late or repeated night never takes a file twice.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.sdk import DAG, CronDataIntervalTimetable
from airflow.sdk.exceptions import AirflowException, AirflowFailException

CONTAINER = "base"

# Exit codes for which a retry cannot help; deploy/RUNBOOK.md explains what to do. All others are
# retried: 1 (failed), 3 (the lease of a killed launch lasts two more minutes), 74 (a file could not
# be read), 75 (stopped by a signal), 137 (killed).
NEVER_RETRIED = {
    2: "wrong usage: fix the config or the flags",
    4: "drift, rejected records or too few documents: read the day's run record",
    5: "done, but bad splits were rejected whole: look at rejected/",
    65: "the input has no records, or none that could be scored",
    66: "no file matches the input",
    73: "the disk of the run folder is full",
    77: "no permission to read an input or to write the run folder",
}

POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {
        "name": "datarater-batch",
        "labels": {"app.kubernetes.io/name": "datarater-batch"},
    },
    "spec": {
        "restartPolicy": "Never",
        "serviceAccountName": "datarater-batch",
        "terminationGracePeriodSeconds": 120,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": CONTAINER,
                "image": "set-by-the-operator",
                "env": [{"name": "HOME", "value": "/tmp"}],
                "resources": {
                    "requests": {"cpu": "1", "memory": "4Gi"},
                    "limits": {"memory": "4Gi"},
                },
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
            }
        ],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    },
}


def exit_code(pod: Any) -> int | None:
    """Returns the exit code of a pod's container; None if it did not terminate or the pod is gone.

    Args:
        pod: Pod as returned by the Kubernetes client, or None.
    """
    statuses = getattr(getattr(pod, "status", None), "container_statuses", None) or []
    for status in statuses:
        if status.name == CONTAINER and status.state and status.state.terminated:
            code: int = status.state.terminated.exit_code
            return code
    return None


class BatchOperator(KubernetesPodOperator):
    """Runs a pod whose exit code decides whether Airflow retries the task."""

    def execute(self, context: Any) -> Any:
        """Runs the pod.

        Args:
            context: Airflow's context of the task.

        Raises:
            AirflowFailException: The pod ended with a code of `NEVER_RETRIED`; the task fails at
                once.
            AirflowException: The pod failed otherwise; Airflow retries the task.
        """
        try:
            return super().execute(context)
        except AirflowException as error:
            code = exit_code(self.remote_pod)
            if code in NEVER_RETRIED:
                raise AirflowFailException(
                    f"datarater batch: exit code {code}: {NEVER_RETRIED[code]}"
                ) from error
            raise


with DAG(
    dag_id="datarater_nightly",
    description="Scores and selects the files that the crawler wrote since the last batch.",
    # With data intervals, `ds` is the day that has just ended, not the day of the run.
    schedule=CronDataIntervalTimetable("30 2 * * *", timezone="UTC"),
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=True,
    max_active_runs=1,
    tags=["datarater"],
) as dag:
    BatchOperator(
        task_id="batch",
        pod_template_dict=POD,
        base_container_name=CONTAINER,
        image="{{ var.value.datarater_image }}",
        cmds=["datarater", "batch"],
        arguments=["--config={{ var.value.datarater_batch_config }}", "--as_of={{ ds }}"],
        retries=3,
        retry_delay=timedelta(minutes=5),
        retry_exponential_backoff=True,
        max_retry_delay=timedelta(hours=1),
        execution_timeout=timedelta(hours=20),
        on_finish_action="delete_succeeded_pod",
        get_logs=True,
    )
