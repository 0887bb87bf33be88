"""The Kubernetes manifests against the schemas, the Flink operator's reference and the commands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml  # type: ignore[import-untyped]

from datarater.meta_training import train
from datarater.meta_training.run.command import EXIT_CODES_OF_ERRORS
from datarater.pipelines.run_folder.lease import TERM_SECONDS
from datarater.pipelines.runners import flink
from datarater.pipelines.runners.choice import beam_flags
from datarater.rater_model.exit_codes import EXIT_CODES
from tests.support import ROOT
from tests.support.deploy_files import DEPLOY, SUBCOMMANDS, pins, setup_names
from tests.support.reference_tables import COMMANDS, parser_of

FOLDER = DEPLOY / "kubernetes"
VERSIONS = ("1.31", kubernetes_validate.latest_version())
"""The oldest version in which podFailurePolicy is stable, and the newest known version."""
KILLED, TERMINATED = 137, 143

# From the operator's reference of its custom resources, as far as it is used here; resources take
# no other field.
_RESOURCE = {
    "type": "object",
    "additionalProperties": False,
    "required": ["cpu", "memory"],
    "properties": {
        "cpu": {"type": "number"},
        "memory": {"type": "string", "pattern": "^[0-9]+[mg]$"},
    },
}
_MANAGER = {
    "type": "object",
    "additionalProperties": False,
    "required": ["replicas", "resource"],
    "properties": {
        "replicas": {"type": "integer", "minimum": 1},
        "resource": _RESOURCE,
        "podTemplate": {"type": "object"},
    },
}
FLINK_DEPLOYMENT = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "flink.apache.org/v1beta1"},
        "kind": {"const": "FlinkDeployment"},
        "metadata": {"type": "object"},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": [
                "image",
                "flinkVersion",
                "flinkConfiguration",
                "jobManager",
                "taskManager",
                "serviceAccount",
            ],
            "properties": {
                "image": {"type": "string"},
                "imagePullPolicy": {"enum": ["Always", "IfNotPresent", "Never"]},
                "serviceAccount": {"type": "string"},
                "flinkVersion": {"enum": ["v1_16", "v1_17", "v1_18", "v1_19", "v1_20"]},
                "flinkConfiguration": {
                    "type": "object",
                    "additionalProperties": {"type": "string"},
                },
                "mode": {"enum": ["native", "standalone"]},
                "podTemplate": {"type": "object"},
                "jobManager": _MANAGER,
                "taskManager": _MANAGER,
            },
        },
    },
}

DOCUMENTS: list[tuple[str, dict[str, Any]]] = [
    (f"{file.stem}-{document['kind']}", document)
    for file in sorted(FOLDER.glob("*.yaml"))
    if file.name != "kustomization.yaml"
    for document in yaml.safe_load_all(file.read_text())
]
BY_NAME = dict(DOCUMENTS)
FLINK = BY_NAME["flink-cluster-FlinkDeployment"]
JOBS = {
    "batch": BY_NAME["batch-cronjob-CronJob"]["spec"]["jobTemplate"]["spec"],
    "curate": BY_NAME["curate-on-flink-Job"]["spec"],
    "score": BY_NAME["score-on-gpu-Job"]["spec"],
    "select": BY_NAME["select-Job"]["spec"],
    "train": BY_NAME["meta-training-Job"]["spec"],
}
ids = [name for name, _ in DOCUMENTS]


def templates(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the pod templates in a document."""
    spec = document.get("spec", {})
    if document["kind"] == "FlinkDeployment":
        parts = (spec, spec["jobManager"], spec["taskManager"])
        yield from (part["podTemplate"] for part in parts if "podTemplate" in part)
    elif document["kind"] == "CronJob":
        yield spec["jobTemplate"]["spec"]["template"]
    elif "template" in spec:
        yield spec["template"]


CONTAINERS = [
    pytest.param(template, container, id=f"{name}-{container['name']}")
    for name, document in DOCUMENTS
    for template in templates(document)
    for container in template["spec"].get("containers", [])
    if container["name"] != "flink-main-container"  # Flink's own: the operator fills it in
]


def flags(container: dict[str, Any]) -> dict[str, str]:
    """Returns the flags of a container."""
    return {
        name: value
        for name, _, value in (argument.partition("=") for argument in container["args"])
    }


def only_container(job: str) -> dict[str, Any]:
    """Returns the only container of a Job."""
    (container,) = JOBS[job]["template"]["spec"]["containers"]
    found: dict[str, Any] = container
    return found


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("document", [document for _, document in DOCUMENTS], ids=ids)
def test_kubernetes_takes_it(document: dict[str, Any], version: str) -> None:
    if document["kind"] == "FlinkDeployment":
        jsonschema.validate(document, FLINK_DEPLOYMENT)
        for template in templates(document):
            spec = {
                **template["spec"],
                "containers": template["spec"].get("containers", [{"name": "main"}]),
            }
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": spec}
            kubernetes_validate.validate(pod, version, strict=True)
    else:
        kubernetes_validate.validate(document, version, strict=True)


def test_kubernetes_would_refuse_a_field_that_it_does_not_know() -> None:
    cronjob = BY_NAME["batch-cronjob-CronJob"]
    wrong = {**cronjob, "spec": {**cronjob["spec"], "concurencyPolicy": "Forbid"}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(
            {**FLINK, "spec": {**FLINK["spec"], "taskmanager": {}}}, FLINK_DEPLOYMENT
        )


@pytest.mark.parametrize(("template", "container"), CONTAINERS)
def test_a_container_has_no_root_and_says_what_it_needs(
    template: dict[str, Any], container: dict[str, Any]
) -> None:
    context = {**template["spec"].get("securityContext", {}), **container["securityContext"]}
    assert context["runAsNonRoot"] is True
    assert context["runAsUser"] == 65532
    assert context["allowPrivilegeEscalation"] is False
    assert context["readOnlyRootFilesystem"] is True
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert {"cpu", "memory"} <= set(container["resources"]["requests"])
    assert (
        container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]
    )
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert "/tmp" in mounted.values(), "with a root file system that cannot be written"
    assert set(mounted) <= {volume["name"] for volume in template["spec"]["volumes"]}


@pytest.mark.parametrize(("template", "container"), CONTAINERS)
def test_an_image_is_the_project_s_or_pinned(
    template: dict[str, Any], container: dict[str, Any]
) -> None:
    name, _, tag = container["image"].partition(":")
    assert name == "datarater" or tag not in ("", "latest")


def test_the_kustomization_names_what_is_there() -> None:
    kustomization = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    once = {"curate-on-flink.yaml", "score-on-gpu.yaml", "select.yaml", "meta-training.yaml"}
    there = {file.name for file in FOLDER.glob("*.yaml")} - {"kustomization.yaml"}
    assert set(kustomization["resources"]) == there - once
    (image,) = kustomization["images"]
    assert image["name"] == "datarater"
    assert image["digest"].startswith("sha256:"), "a tag can move while a run lasts"
    assert "newTag" not in image
    namespaces = {document["metadata"].get("namespace", "datarater") for _, document in DOCUMENTS}
    assert namespaces == {kustomization["namespace"]}


@pytest.mark.parametrize("job", sorted(JOBS))
def test_what_a_job_does_with_each_exit_code(job: str) -> None:
    policy = JOBS[job]["podFailurePolicy"]["rules"]
    assert policy[0] == {
        "action": "Ignore",
        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
    }
    codes: dict[str, list[int]] = {}
    for rule in policy[1:]:
        assert rule["onExitCodes"]["containerName"] == only_container(job)["name"]
        assert rule["onExitCodes"]["operator"] == "In"
        codes[rule["action"]] = rule["onExitCodes"]["values"]
        assert codes[rule["action"]] == sorted(set(codes[rule["action"]])), (
            "Kubernetes wants them in order"
        )
    assert set(codes) == {"FailJob", "Count"}
    assert not set(codes["FailJob"]) & set(codes["Count"])
    known = (
        set(EXIT_CODES) - {0}
        if job != "train"
        else {code for _, code in EXIT_CODES_OF_ERRORS} | {1, 73}
    )
    assert set(codes["FailJob"]) | set(codes["Count"]) == known | {KILLED, TERMINATED}
    assert {1, 75, KILLED, TERMINATED} <= set(codes["Count"])
    assert JOBS[job]["template"]["spec"]["restartPolicy"] == "Never", (
        "a policy on exit codes needs it"
    )


def test_a_killed_launch_s_lease_runs_out_before_the_tries_do() -> None:
    for job in ("batch", "curate", "score", "select"):
        waits = [10 * 2**number for number in range(JOBS[job]["backoffLimit"])]
        assert sum(waits) > 2 * TERM_SECONDS


def test_only_the_batch_has_the_account_that_writes_the_journal() -> None:
    accounts = yaml.safe_load_all((FOLDER / "service-account.yaml").read_text())
    identities = {
        account["metadata"]["name"]: account["metadata"]["annotations"][
            "iam.gke.io/gcp-service-account"
        ].partition("@")[0]
        for account in accounts
    }
    assert identities == {
        "datarater": "datarater-worker",
        "datarater-batch": "datarater-launcher",
    }
    used = {job: spec["template"]["spec"].get("serviceAccountName") for job, spec in JOBS.items()}
    assert used["batch"] == "datarater-batch"
    assert {used[job] for job in used if job != "batch"} <= {"datarater", None}


def test_nights_do_not_meet() -> None:
    spec = BY_NAME["batch-cronjob-CronJob"]["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    assert spec["timeZone"] == "Etc/UTC", "deploy/nightly.sh takes the date in UTC"
    assert (
        spec["startingDeadlineSeconds"] + JOBS["batch"]["activeDeadlineSeconds"]
        > 24 * 3600
        > JOBS["batch"]["activeDeadlineSeconds"]
    )


def test_commands_and_flags_are_the_project_s_and_beam_s() -> None:
    assert only_container("batch")["command"] == ["datarater-nightly"]
    assert (
        "deploy/nightly.sh /opt/datarater/bin/datarater-nightly"
        in (DEPLOY / "Dockerfile").read_text()
    )
    curate = parser_of(COMMANDS["curate"])
    given = flags(only_container("curate"))
    assert only_container("curate")["command"] == ["datarater", "curate"]
    assert only_container("train")["command"] == ["datarater", "train"]
    assert setup_names("console_scripts") == {"datarater"}
    assert {"curate", "train"} <= SUBCOMMANDS
    own, rest = curate.parse_known_args(only_container("curate")["args"])
    assert own.input == ["gs://BUCKET/crawl/*.jsonl.gz"]
    assert {word.partition("=")[0] for word in rest} <= beam_flags()
    assert given["--environment_config"] == flink.DEFAULT_WORKER_POOL


def test_a_gpu_scores_and_cpus_select() -> None:
    gpu = "nvidia.com/gpu"
    resources = {job: only_container(job)["resources"]["limits"] for job in ("score", "select")}
    assert resources["score"][gpu] == "1"
    assert gpu not in resources["select"]
    given = {job: flags(only_container(job)) for job in ("score", "select")}
    assert given["score"]["--output"] == given["select"]["--output"]
    assert int(given["score"]["--tokens_per_batch"]) >= 65536
    for job in ("score", "select"):
        assert only_container(job)["command"] == ["datarater", job]
        own, rest = parser_of(COMMANDS[job]).parse_known_args(only_container(job)["args"])
        assert own.output.startswith("gs://")
        assert not rest


def test_flink_its_job_server_and_its_workers_fit() -> None:
    beam = pins(ROOT / "constraints.txt")["apache-beam"]
    version = re.match(r"flink:(\d+)\.(\d+)\.\d+-", FLINK["spec"]["image"])
    assert version is not None
    assert FLINK["spec"]["flinkVersion"] == f"v{version[1]}_{version[2]}"
    (server,) = BY_NAME["flink-job-server-Deployment"]["spec"]["template"]["spec"]["containers"]
    assert server["image"] == f"apache/beam_flink{version[1]}.{version[2]}_job_server:{beam}"
    master = f"{FLINK['metadata']['name']}-rest:8081"
    assert (
        flags(server)["--flink-master"]
        == flags(only_container("curate"))["--flink_master"]
        == master
    )
    # The commands refuse a job before the task managers have joined. In native mode they would join
    # only with the job.
    assert FLINK["spec"]["mode"] == "standalone"
    (pool,) = [
        each
        for each in FLINK["spec"]["taskManager"]["podTemplate"]["spec"]["containers"]
        if "image" in each
    ]
    assert pool["args"] == ["--worker_pool"], (
        "Beam's boot program, the image's entrypoint, listens on 50000 then"
    )
    assert f"localhost:{pool['ports'][0]['containerPort']}" == flink.DEFAULT_WORKER_POOL
    slots = FLINK["spec"]["flinkConfiguration"]["taskmanager.numberOfTaskSlots"]
    assert pool["resources"]["requests"]["cpu"] == slots, "one process a slot, one core a process"


def test_services_lead_to_pods_and_ports() -> None:
    service = BY_NAME["flink-job-server-Service"]
    pods = BY_NAME["flink-job-server-Deployment"]["spec"]["template"]
    assert service["spec"]["selector"].items() <= pods["metadata"]["labels"].items()
    offered = {
        port["name"]: port["containerPort"] for port in pods["spec"]["containers"][0]["ports"]
    }
    given = flags(pods["spec"]["containers"][0])
    endpoints = flags(only_container("curate"))
    for port, server_flag, flag in (
        ("jobs", "--job-port", "--job_endpoint"),
        ("artifacts", "--artifact-port", "--artifact_endpoint"),
    ):
        assert str(offered[port]) == given[server_flag]
        (listed,) = [each for each in service["spec"]["ports"] if each["name"] == port]
        assert listed["targetPort"] == port
        assert endpoints[flag] == f"{service['metadata']['name']}:{listed['port']}"


def test_the_processes_of_meta_training_find_each_other() -> None:
    spec, service, claim = (
        JOBS["train"],
        BY_NAME["meta-training-Service"],
        BY_NAME["meta-training-PersistentVolumeClaim"],
    )
    name, pod, container = (
        BY_NAME["meta-training-Job"]["metadata"]["name"],
        spec["template"],
        only_container("train"),
    )
    given = flags(container)
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == int(given["--processes"])
    assert pod["spec"]["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    port = container["ports"][0]["containerPort"]
    assert given["--coordinator"] == f"{name}-0.{service['metadata']['name']}:{port}"
    (process,) = [
        variable for variable in container["env"] if f"$({variable['name']})" == given["--process"]
    ]
    assert (
        "batch.kubernetes.io/job-completion-index" in process["valueFrom"]["fieldRef"]["fieldPath"]
    )
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert given["--workdir"].startswith("/work/")
    assert pod["spec"]["terminationGracePeriodSeconds"] >= 300, (
        "a checkpoint is written after SIGTERM"
    )
    assert spec["podReplacementPolicy"] == "Failed"
    names = {flag for flag in given if not flag.startswith("--config.")}
    assert names <= set(re.findall(r"--[a-z]+", train.help_text()))
    assert (ROOT / "meta_training" / "configs" / f"{given['--config']}.py").exists()
