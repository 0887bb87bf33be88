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
    references = set(re.findall(r"\b(google_[a-z0-9_]+\.[a-z_]+)\b", TEXT))
    assert references <= set(RESOURCES), "a reference to no resource"


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
        "batch_config": "batch.yaml",
        "batch_schedule": "daily",
        "batch_hours": 48,
        "max_workers": 0,
        "temporary_days": 1,
        "noncurrent_days": 0,
    }
    ruled = {name for name, body in VARIABLES.items() if "validation" in body}
    assert set(wrong) == ruled, "a rule that no value tries"
    done = planned(wrong, tmp_path)
    assert done.returncode != 0
    for name in wrong:
        assert f"var.{name} is " in done.stderr, f"{name}: {wrong[name]!r} was let through"


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
    }
    assert not [name for name in RESOURCES if name.startswith("google_service_account_key")]


def test_the_bucket_is_private_and_its_temporary_files_end() -> None:
    bucket = RESOURCES["google_storage_bucket.datarater"]
    assert bucket["uniform_bucket_level_access"] is True
    assert bucket["public_access_prevention"] == "enforced"
    assert bucket["versioning"][0]["enabled"] is True
    (temporary,) = [
        rule for rule in bucket["lifecycle_rule"] if "matches_prefix" in rule["condition"][0]
    ]
    prefixes = temporary["condition"][0]["matches_prefix"]
    assert prefixes == ["temp/", "staging/"]
    # No other rule deletes the current version of an object.
    others = [rule for rule in bucket["lifecycle_rule"] if rule is not temporary]
    assert all(
        rule["action"][0]["type"] != "Delete"
        or "days_since_noncurrent_time" in rule["condition"][0]
        for rule in others
    )
    # The rule cleans up the folders that jobs use.
    for flag in ("temp_location", "staging_location"):
        (value,) = re.findall(rf'"--{flag}=gs://\$\{{[^}}]+\}}/(\w+)"', TEXT)
        assert f"{value}/" in prefixes


def test_the_nightly_job_s_flags_are_beam_s() -> None:
    (container,) = RESOURCES["google_cloud_run_v2_job.batch"]["template"][0]["template"][0][
        "containers"
    ]
    assert container["command"] == ["datarater-nightly"]
    flags = [argument.partition("=")[0] for argument in container["args"]]
    assert flags[0] == "--config"
    assert set(flags[1:]) <= beam_flags()
    assert len(flags) == len(set(flags))


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
    tags = set(re.findall(r"\$\{local\.image\}:\$\{var\.image_tag\}([^\"]*)\"", TEXT))
    assert tags == {"", "-${each.value}", "-command"}, (
        "deploy/cloudbuild.yaml pushes these and no other"
    )
