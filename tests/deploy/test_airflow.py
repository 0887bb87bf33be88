"""The Airflow DAG, imported with Airflow if it is installed, otherwise with a stub of its classes.

The stub records its arguments. It shows that the lines of the DAG run and what they ask for, not
that Airflow accepts the DAG. To test that, install apache-airflow and its provider next to the dev
extra and run this file again.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Iterator
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml  # type: ignore[import-untyped]

from datarater.rater_model.exit_codes import EXIT_CODES
from tests.support.deploy_files import DEPLOY, SUBCOMMANDS, setup_names

FILE = DEPLOY / "airflow" / "datarater_nightly.py"
POD_MODULE = "airflow.providers.cncf.kubernetes.operators.pod"


class _AirflowError(Exception):
    """Replaces AirflowException."""


class _AirflowFailError(_AirflowError):
    """Replaces AirflowFailException, which forbids retries."""


class _Kept:
    """Replaces a DAG, a timetable or an operator; records its arguments and its operators."""

    current: _Kept | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.arguments, self.options = arguments, options
        self.tasks: list[_Kept] = []
        self.remote_pod: Any = None
        if _Kept.current is not None:
            _Kept.current.tasks.append(self)

    def __enter__(self) -> _Kept:
        _Kept.current = self
        return self

    def __exit__(self, *_: object) -> None:
        _Kept.current = None

    def execute(self, context: Any) -> Any:
        """Fails if there is a pod, which stands for a failed one."""
        if self.remote_pod is not None:
            raise _AirflowError("the pod failed")
        return "done"


def stand_in() -> dict[str, types.ModuleType]:
    """Returns stubs of the modules that the DAG imports."""
    names = POD_MODULE.split(".")
    modules = {
        ".".join(names[:end]): types.ModuleType(".".join(names[:end]))
        for end in range(1, len(names) + 1)
    }
    modules |= {name: types.ModuleType(name) for name in ("airflow.sdk", "airflow.sdk.exceptions")}
    modules[POD_MODULE].KubernetesPodOperator = type("KubernetesPodOperator", (_Kept,), {})  # type: ignore[attr-defined]
    modules["airflow.sdk"].DAG = type("DAG", (_Kept,), {})  # type: ignore[attr-defined]
    modules["airflow.sdk"].CronDataIntervalTimetable = type("Timetable", (_Kept,), {})  # type: ignore[attr-defined]
    modules["airflow.sdk.exceptions"].AirflowException = _AirflowError  # type: ignore[attr-defined]
    modules["airflow.sdk.exceptions"].AirflowFailException = _AirflowFailError  # type: ignore[attr-defined]
    return modules


@pytest.fixture(scope="module")
def dag_file() -> Iterator[Any]:
    """Returns the imported module of the DAG."""
    with pytest.MonkeyPatch.context() as patch:
        if importlib.util.find_spec("airflow") is None:
            for name, module in stand_in().items():
                patch.setitem(sys.modules, name, module)
        spec = importlib.util.spec_from_file_location(FILE.stem, FILE)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


def option(thing: Any, name: str) -> Any:
    """Returns an argument of a DAG or an operator."""
    return thing.options[name] if isinstance(thing, _Kept) else getattr(thing, name)


def pod(code: int | None) -> Any:
    """Returns a pod that has ended, with or without an exit code."""
    ended = None if code is None else types.SimpleNamespace(exit_code=code)
    state = types.SimpleNamespace(terminated=ended)
    status = types.SimpleNamespace(name="base", state=state)
    return types.SimpleNamespace(status=types.SimpleNamespace(container_statuses=[status]))


def test_one_batch_a_day_for_the_day_that_has_ended(dag_file: Any) -> None:
    dag = dag_file.dag
    (task,) = dag.tasks
    assert option(dag, "catchup") is True
    assert option(dag, "max_active_runs") == 1
    assert option(dag, "start_date").utcoffset().total_seconds() == 0
    timetable = option(dag, "schedule") if isinstance(dag, _Kept) else dag.timetable
    assert (
        type(timetable) is dag_file.CronDataIntervalTimetable
        or "CronDataInterval" in type(timetable).__name__
    )
    assert option(task, "cmds") == ["datarater", "batch"]
    assert option(task, "arguments") == [
        "--config={{ var.value.datarater_batch_config }}",
        "--as_of={{ ds }}",
    ]
    assert option(task, "retries") >= 1
    # The lease of a killed launch expires between two tries.
    assert option(task, "retry_delay").total_seconds() > 120


def test_what_is_never_retried_is_what_the_cronjob_never_retries(dag_file: Any) -> None:
    (cronjob,) = yaml.safe_load_all((DEPLOY / "kubernetes" / "batch-cronjob.yaml").read_text())
    rules = cronjob["spec"]["jobTemplate"]["spec"]["podFailurePolicy"]["rules"]
    (never,) = [rule["onExitCodes"]["values"] for rule in rules if rule["action"] == "FailJob"]
    assert sorted(dag_file.NEVER_RETRIED) == never
    assert set(dag_file.NEVER_RETRIED) < set(EXIT_CODES)


@pytest.mark.parametrize("code", [*sorted(set(EXIT_CODES) - {0}), 137, None])
def test_the_exit_code_says_whether_to_try_again(
    dag_file: Any, code: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (task,) = dag_file.dag.tasks

    def fail(*_: Any) -> None:
        raise dag_file.AirflowException("the pod failed")

    monkeypatch.setattr(dag_file.KubernetesPodOperator, "execute", fail)
    monkeypatch.setattr(task, "remote_pod", pod(code))
    assert dag_file.exit_code(task.remote_pod) == code
    with pytest.raises(dag_file.AirflowException) as raised:
        dag_file.BatchOperator.execute(task, {})
    fails_at_once = isinstance(raised.value, dag_file.AirflowFailException)
    assert fails_at_once is (code in dag_file.NEVER_RETRIED)
    if fails_at_once:
        assert f"exit code {code}" in str(raised.value)


def test_a_pod_that_is_gone_has_no_exit_code(dag_file: Any) -> None:
    assert dag_file.exit_code(None) is None


def test_the_pod_is_one_that_kubernetes_takes(dag_file: Any) -> None:
    kubernetes_validate.validate(dag_file.POD, kubernetes_validate.latest_version(), strict=True)
    (container,) = dag_file.POD["spec"]["containers"]
    assert container["name"] == option(dag_file.dag.tasks[0], "base_container_name")
    assert dag_file.POD["spec"]["securityContext"]["runAsNonRoot"] is True


def test_the_command_is_installed() -> None:
    assert setup_names("console_scripts") == {"datarater"}
    assert "batch" in SUBCOMMANDS
