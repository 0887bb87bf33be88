"""The Terraform module: its format, names and rules of variables, without the provider's schema."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hcl2
import pytest
from google.cloud import dataflow_v1beta3

from datarater.pipelines.runners.choice import beam_flags
from tests.support.deploy_files import DEPLOY
from tests.support.flex_templates import TEMPLATES

FOLDER = DEPLOY / "terraform"
FILES = sorted(FOLDER.glob("*.tf"))
EXAMPLE = FOLDER / "terraform.tfvars.example"


def plain(tree: Any) -> Any:
    """Returns the output of hcl2 without its quotes and markers."""
    if isinstance(tree, dict):
        return {
            key.strip('"'): plain(value)
            for key, value in tree.items()
            if key not in ("__is_block__", "__comments__")
        }
    if isinstance(tree, list):
        return [plain(each) for each in tree]
    return (
        tree[1:-1]
        if isinstance(tree, str) and tree.startswith('"') and tree.endswith('"')
        else tree
    )


MODULE: dict[str, list[Any]] = {}
for _file in FILES:
    for _kind, _blocks in plain(hcl2.loads(_file.read_text())).items():
        if isinstance(_blocks, list):
            MODULE.setdefault(_kind, []).extend(_blocks)
VARIABLES = {name: body for block in MODULE["variable"] for name, body in block.items()}
RESOURCES = {
    f"{kind}.{name}": body
    for block in MODULE["resource"]
    for kind, named in block.items()
    for name, body in named.items()
}
IMAGES = {
    name: body
    for block in MODULE["data"]
    for name, body in block.get("google_artifact_registry_docker_image", {}).items()
}
TEXT = "\n".join(file.read_text() for file in FILES)


def terraform() -> str:
    """Returns the path of terraform; skips the test if it is not installed."""
    program = shutil.which("terraform")
    if program is None:
        pytest.skip("terraform is not installed: form and variables' rules are not checked")
    return program


def test_the_form_is_terraform_s_own(tmp_path: Path) -> None:
    shutil.copy(EXAMPLE, tmp_path / "example.tfvars")
    for folder in (FOLDER, tmp_path):
        done = subprocess.run(
            [terraform(), "fmt", "-check", "-diff", "-recursive", folder],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout


def test_every_name_that_is_used_is_declared_and_the_other_way_round() -> None:
    used = set(re.findall(r"\bvar\.([a-z_]+)", TEXT))
    assert used == set(VARIABLES)
    declared = {name for block in MODULE["locals"] for name in block}
    assert set(re.findall(r"\blocal\.([a-z_]+)", TEXT)) == declared
    references = set(re.findall(r"(?<!data\.)\b(google_[a-z0-9_]+\.[a-z_]+)\b", TEXT))
    assert references <= set(RESOURCES), "a reference to no resource"
    images = set(re.findall(r"\bdata\.google_artifact_registry_docker_image\.([a-z_]+)", TEXT))
    assert images == set(IMAGES)


def test_variables_and_outputs_say_what_they_are() -> None:
    for block in [*MODULE["variable"], *MODULE["output"]]:
        for name, body in block.items():
            assert body["description"].endswith((".", "europe-west4", ".yaml")), name
    for name, body in VARIABLES.items():
        assert body.get("type"), name
    assert all(
        "error_message" in each
        for body in VARIABLES.values()
        for each in body.get("validation", [])
    )


def test_the_example_gives_what_has_no_default() -> None:
    needed = {name for name, body in VARIABLES.items() if "default" not in body}
    given = set(hcl2.loads(EXAMPLE.read_text())) - {"__comments__"}
    assert needed <= given <= set(VARIABLES)


def planned(values: dict[str, Any], folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a plan with only the module's variables, which evaluates their rules offline."""
    shutil.copy(FOLDER / "variables.tf", folder)
    (folder / "values.auto.tfvars.json").write_text(json.dumps(values))
    for command in (["init", "-backend=false"], ["plan", "-refresh=false", "-lock=false"]):
        done = subprocess.run(
            [terraform(), *command, "-input=false", "-no-color"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
    return done


RIGHT_VALUES = {
    name: value
    for name, value in plain(hcl2.loads(EXAMPLE.read_text())).items()
    if name != "__comments__"
}


def test_the_example_s_values_pass_the_variables_rules(tmp_path: Path) -> None:
    done = planned(RIGHT_VALUES, tmp_path)
    assert done.returncode == 0, done.stderr


def test_wrong_values_are_refused_with_what_to_give(tmp_path: Path) -> None:
    wrong = {
        "project": "My Project",
        "region": "europe-west4-a",
        "bucket": "gs://my-datarater",
        "input_buckets": ["gs://my-crawl/2026"],
        "image_tag": "latest",
        "gpu_image_tag": "latest",
        "gpu_accelerator": "nvidia-l4",
        "network": "projects/p/global/networks/n",
        "subnetwork": "my-subnetwork",
        "batch_config": "batch.yaml",
        "batch_schedule": "daily",
        "batch_hours": 48,
        "max_workers": 0,
        "temporary_days": 1,
        "noncurrent_days": 0,
    }
    ruled = {name for name, body in VARIABLES.items() if "validation" in body}
    of_several = {"runs_bucket", "public_ips"}
    assert set(wrong) == ruled - of_several, "a rule that no value tries"
    done = planned(wrong, tmp_path)
    assert done.returncode != 0
    for name in wrong:
        assert f"var.{name} is " in done.stderr, f"{name}: {wrong[name]!r} was let through"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"subnetwork": ""}, "Give a subnetwork with Private Google Access"),
        ({"runs_bucket": RIGHT_VALUES["bucket"]}, "a bucket other than var.bucket"),
        ({"runs_bucket": "gs://my-runs"}, "without gs://"),
        ({"subnetwork": "", "public_ips": True}, None),
    ],
)
def test_values_that_contradict_each_other_are_refused(
    change: dict[str, Any], message: str | None, tmp_path: Path
) -> None:
    done = planned({**RIGHT_VALUES, **change}, tmp_path)
    assert (done.returncode == 0) is (message is None)
    assert message is None or message in " ".join(done.stderr.replace("│", " ").split())


# What Terraform computes, with constants in place of what only the provider knows.
_KNOWN_AFTERWARDS = {
    r"google_storage_bucket\.(\w+)\.name": r'"bucket-\1"',
    r"google_service_account\.(\w+)\.email": r'"\1@my-project"',
    r"google_artifact_registry_repository\.images\.repository_id": '"datarater"',
    r"data\.google_artifact_registry_docker_image\.(\w+)": (
        r'{ for role in ["worker", "curate", "score", "select", "command"] : role => '
        r'{ self_link = "registry/datarater@sha256:\1-${role}" } }'
    ),
    r"\$\{path\.module\}": str(FOLDER),
}


def block(file: str, opening: str) -> str:
    """Returns the body of the block of a file that begins with a line."""
    text = (FOLDER / file).read_text()
    body = text[text.index(opening) + len(opening) :]
    return body[: body.index("\n}\n")]


def computed(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Returns the templates and the nightly job's flags that Terraform computes from values."""
    shutil.copy(FOLDER / "variables.tf", folder)
    parts = [
        f"locals {{{block('main.tf', 'locals {')}\n}}",
        f"locals {{{block('templates.tf', 'locals {')}\n}}",
    ]
    for name, opening in (
        ("templates", 'resource "google_storage_bucket_object" "template" {'),
        ("gpu_templates", 'resource "google_storage_bucket_object" "gpu_template" {'),
    ):
        body = block("templates.tf", opening)
        each, content = re.search(r"for_each = (.+)", body), body[body.index("content = ") + 10 :]
        assert each is not None
        content = content.replace("each.value", "each")
        parts.append(
            f'output "{name}" {{ value = {{ for each in {each[1]} : each => {content} }} }}'
        )
    job = (FOLDER / "schedule.tf").read_text()
    args = job[job.index("args = concat(") + 7 : job.index("local.network_flags)") + 20]
    parts.append(f'output "flags" {{ value = {args} }}')

    text = "\n".join(parts)
    for pattern, constant in _KNOWN_AFTERWARDS.items():
        text = re.sub(pattern, constant, text)
    # A reference within a text becomes the constant itself.
    text = re.sub(r'\$\{"([^"]*)"\}', r"\1", text)
    (folder / "computed.tf").write_text(text)
    (folder / "values.auto.tfvars.json").write_text(json.dumps(values))
    for command in (["init", "-backend=false"], ["apply", "-auto-approve"], ["output", "-json"]):
        done = subprocess.run(
            [terraform(), *command, *["-no-color"][: command[0] != "output"]],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr + text
    return {name: output["value"] for name, output in json.loads(done.stdout).items()}


def test_templates_and_the_nightly_job_run_images_by_digest_without_public_addresses(
    tmp_path: Path,
) -> None:
    subnetwork = RIGHT_VALUES["subnetwork"]
    values = {**RIGHT_VALUES, "gpu_image_tag": "1a2b3c4-cuda12"}
    result = computed(values, tmp_path)
    templates = {**result["templates"], **result["gpu_templates"]}
    assert set(templates) == {*TEMPLATES, "score-on-gpu"}
    for name, content in templates.items():
        template = json.loads(content)
        kind, command = ("gpu", "score") if name == "score-on-gpu" else ("built", name)
        assert template["image"] == f"registry/datarater@sha256:{kind}-{command}"
        environment = template["defaultEnvironment"]
        assert environment["sdkContainerImage"] == f"registry/datarater@sha256:{kind}-worker"
        assert environment["subnetwork"] == subnetwork
        assert environment["ipConfiguration"] == "WORKER_IP_PRIVATE"
        assert environment["tempLocation"] == "gs://bucket-runs/temp"
        # Dataflow knows every field.
        dataflow_v1beta3.FlexTemplateRuntimeEnvironment.from_json(
            json.dumps(environment), ignore_unknown_fields=False
        )
    on_gpu = json.loads(templates["score-on-gpu"])["defaultEnvironment"]
    assert (
        on_gpu["machineType"] != json.loads(templates["score"])["defaultEnvironment"]["machineType"]
    )
    assert on_gpu["additionalExperiments"][0].startswith("worker_accelerator=type:nvidia-")

    given = dict(flag.partition("=")[::2] for flag in result["flags"])
    assert set(given) - {"--config"} <= beam_flags()
    assert len(given) == len(result["flags"])
    assert given["--sdk_container_image"] == "registry/datarater@sha256:built-worker"
    assert given["--subnetwork"] == subnetwork
    assert given["--no_use_public_ips"] == ""
    assert given["--staging_location"] == "gs://bucket-runs/staging"


def test_public_addresses_and_a_network_are_settings(tmp_path: Path) -> None:
    values = {**RIGHT_VALUES, "subnetwork": "", "network": "my-network", "public_ips": True}
    result = computed(values, tmp_path)
    assert result["gpu_templates"] == {}
    environment = json.loads(result["templates"]["curate"])["defaultEnvironment"]
    assert environment["ipConfiguration"] == "WORKER_IP_PUBLIC"
    assert environment["network"] == "my-network"
    assert "subnetwork" not in environment
    assert "--network=my-network" in result["flags"]
    assert not [flag for flag in result["flags"] if "public_ips" in flag or "subnetwork" in flag]


def rights() -> Iterator[tuple[str, str, str]]:
    """Yields every grant: the resource, the role and the member."""
    for name, body in RESOURCES.items():
        if "_iam_" in name:
            yield name, body["role"], body["member"]


def test_accounts_have_no_more_than_they_need() -> None:
    granted = list(rights())
    assert len(granted) > 8
    for name, role, member in granted:
        assert role not in ("roles/owner", "roles/editor", "roles/viewer"), name
        assert not role.endswith(("admin", "Admin")), name
        assert "all" not in member.lower(), name
        assert "_iam_member" in name, f"{name} would take the role away from others"
    on_project = {
        (name, role) for name, role, _ in granted if name.startswith("google_project_iam_member")
    }
    assert {role for _, role in on_project} == {
        "roles/dataflow.worker",
        "roles/dataflow.developer",
        "roles/logging.logWriter",
        "${each.value}",
    }
    sbom = json.loads(
        re.sub(r"^\$\{toset\(|\)\}$", "", RESOURCES[f"{MEMBER}.builder_sbom"]["for_each"])
    )
    assert all(re.fullmatch(r"roles/containeranalysis\.\w+\.editor", role) for role in sbom)
    assert not [name for name in RESOURCES if name.startswith("google_service_account_key")]


MEMBER = "google_project_iam_member"
WRITES = ("roles/storage.objectUser", "roles/storage.objectCreator", "roles/storage.objectAdmin")
OWN_BUCKET = "${google_storage_bucket.datarater.name}"
RUNS_BUCKET = "${google_storage_bucket.runs.name}"


def writers() -> dict[str, dict[str, str]]:
    """Returns the condition under which each account may write each bucket: bucket, account."""
    found: dict[str, dict[str, str]] = {}
    for name, body in RESOURCES.items():
        if name.startswith("google_storage_bucket_iam_member") and body["role"] in WRITES:
            condition = body.get("condition", [{"expression": ""}])[0]["expression"]
            member = body["member"]
            accounts = ["worker", "launcher"] if body.get("for_each") == "${local.runs}" else []
            accounts = accounts or re.findall(r"google_service_account\.(\w+)\.member", member)
            assert accounts, name
            for account in accounts:
                found.setdefault(body["bucket"], {})[account] = condition
    return found


def test_a_worker_may_write_run_folders_and_nothing_else() -> None:
    assert set(writers()) == {OWN_BUCKET, RUNS_BUCKET}
    assert set(writers()[RUNS_BUCKET]) == {"worker", "launcher"}
    # Raters, templates, the journal and published manifests are in the other bucket.
    assert "worker" not in writers()[OWN_BUCKET]
    assert RESOURCES["google_storage_bucket_object.template"]["bucket"] == OWN_BUCKET
    example = (DEPLOY / "batch.example.yaml").read_text()
    for key, bucket in (
        ("rater", "BUCKET"),
        ("state", "BUCKET"),
        ("publish", "BUCKET"),
        ("runs", "RUNS_BUCKET"),
        ("reference", "RUNS_BUCKET"),
    ):
        assert re.search(rf"^{key}: gs://\$\{{{bucket}\}}/", example, re.MULTILINE), key


def test_the_role_of_workers_on_the_project_reaches_no_other_bucket() -> None:
    # roles/dataflow.worker may create objects in every bucket of the project.
    condition = RESOURCES[f"{MEMBER}.worker"]["condition"][0]["expression"]
    for kind in ("Bucket", "Object"):
        assert f'resource.type != "storage.googleapis.com/{kind}"' in condition
    names = re.findall(r'resource\.name\S* ?=?=? ?\(?"([^"]+)"', condition)
    assert len(names) == 2
    assert all(name.startswith("projects/_/buckets/${local.runs_bucket}") for name in names)
    assert names[1].endswith("/objects/"), "my-runs-2 begins with my-runs"


def test_the_nightly_batch_and_the_builds_write_only_below_their_folders() -> None:
    conditions = writers()[OWN_BUCKET]
    folders = {
        account: re.findall(r'startsWith\(\\?"\$\{local\.own_objects\}/(\w+/)\\?"\)', text)
        for account, text in conditions.items()
    }
    assert folders == {"launcher": ["nightly/"], "builder": ["build/", "sbom/"]}
    assert all(
        text.count("resource.name") == len(folders[name]) for name, text in conditions.items()
    )
    example = (DEPLOY / "batch.example.yaml").read_text()
    assert set(
        re.findall(r"^(?:state|publish): gs://\$\{BUCKET\}/(\w+/)", example, re.MULTILINE)
    ) == {"nightly/"}
    assert "gs://${_BUCKET}/sbom" in (DEPLOY / "cloudbuild-sbom.yaml").read_text()


@pytest.mark.parametrize("name", ["datarater", "runs"])
def test_the_buckets_are_private_and_only_their_temporary_files_end(name: str) -> None:
    bucket = RESOURCES[f"google_storage_bucket.{name}"]
    assert bucket["uniform_bucket_level_access"] is True
    assert bucket["public_access_prevention"] == "enforced"
    assert bucket["versioning"][0]["enabled"] is True
    temporary = [
        rule for rule in bucket["lifecycle_rule"] if "matches_prefix" in rule["condition"][0]
    ]
    prefixes = [prefix for rule in temporary for prefix in rule["condition"][0]["matches_prefix"]]
    assert prefixes == (["temp/", "staging/"] if name == "runs" else [])
    # No other rule deletes the current version of an object.
    others = [rule for rule in bucket["lifecycle_rule"] if rule not in temporary]
    assert all(
        rule["action"][0]["type"] != "Delete"
        or "days_since_noncurrent_time" in rule["condition"][0]
        for rule in others
    )


def test_temporary_files_are_where_a_rule_deletes_them() -> None:
    for flag in ("temp_location", "staging_location"):
        (value,) = re.findall(
            rf'"--{flag}=gs://\$\{{google_storage_bucket.runs.name\}}/(\w+)"', TEXT
        )
        assert f"{value}/" in ("temp/", "staging/")


def test_the_nightly_job_runs_the_batch() -> None:
    (container,) = RESOURCES["google_cloud_run_v2_job.batch"]["template"][0]["template"][0][
        "containers"
    ]
    assert container["command"] == ["datarater-nightly"]
    assert container["image"] == '${local.images["command"]}'
    example = (DEPLOY / "batch.example.yaml").read_text()
    variables = {variable["name"] for variable in container["env"]}
    assert set(re.findall(r"\$\{(\w+)\}", example)) - {"NAME"} <= variables


def test_the_schedule_starts_that_job_and_may_do_nothing_else() -> None:
    target = RESOURCES["google_cloud_scheduler_job.nightly"]["http_target"][0]
    assert target["http_method"] == "POST"
    assert target["uri"] == "https://run.googleapis.com/v2/${google_cloud_run_v2_job.batch.id}:run"
    assert (
        target["oauth_token"][0]["service_account_email"]
        == "${google_service_account.scheduler.email}"
    )
    to_scheduler = [
        (name, role) for name, role, member in rights() if "service_account.scheduler" in member
    ]
    assert to_scheduler == [("google_cloud_run_v2_job_iam_member.scheduler", "roles/run.invoker")]


def test_the_templates_are_those_that_the_build_makes() -> None:
    template = RESOURCES["google_storage_bucket_object.template"]
    assert json.loads(template["for_each"].removeprefix("${toset(").removesuffix(")}")) == list(
        TEMPLATES
    )
    assert "/../dataflow/${each.value}.json" in TEXT
    roles = {"worker", *TEMPLATES, "command"}
    for name, tag, expected in (
        ("built", "image_tag", roles),
        ("gpu", "gpu_image_tag", {"worker", "score"}),
    ):
        found = IMAGES[name]
        assert set(re.findall(r'"(\w+)"', found["for_each"])) == expected, (
            "deploy/cloudbuild.yaml pushes these and no other"
        )
        assert found["image_name"].startswith(f"datarater:${{var.{tag}}}")
    # Nothing runs by its tag.
    assert "local.image}:" not in TEXT
