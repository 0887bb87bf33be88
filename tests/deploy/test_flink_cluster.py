"""The parts of the local Flink cluster that need no Java: error messages and the supervisor."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from datarater.pipelines.run_folder.lease import process_id
from datarater.rater_model.atomic_files import write_json
from deploy.flink import cluster, java, supervisor
from tests.support import ROOT


def fake_java(folder: Path, version: str) -> Path:
    program = folder / "bin" / "java"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2025-04-15' >&2\n")
    program.chmod(0o755)
    return program


@pytest.mark.parametrize("version", ["17.0.15", "11.0.2", "21"])
def test_java_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    program = fake_java(tmp_path, version)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    assert java.find_java() == str(program)


def test_java_that_is_absent_or_too_old_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_java(tmp_path / "old", "1.8.0_392")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "old"))
    with pytest.raises(
        java.ClusterError, match=r'Java 11 or newer; the one in JAVA_HOME=.*version "1\.8\.0_392"'
    ):
        java.find_java()
    monkeypatch.delenv("JAVA_HOME")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(java.ClusterError, match="there is none on PATH: install a JDK"):
        java.find_java()


def test_maven_that_is_absent_or_fails_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(java.ClusterError, match="there is no mvn on PATH"):
        java.fetch_jars(tmp_path / "jars")
    maven = tmp_path / "mvn"
    maven.write_text("#!/bin/sh\necho Could not transfer artifact\nexit 1\n")
    maven.chmod(0o755)
    with pytest.raises(
        java.ClusterError, match=r"(?s)could not fetch the jars of .*pom\.xml:\nCould not transfer"
    ):
        java.fetch_jars(tmp_path / "jars")
    maven.write_text(
        "#!/bin/sh\nfor last; do :; done\n"
        'mkdir -p "${last#*=}"\n: > "${last#*=}/beam-a-long-name.jar"\n'
    )
    maven.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    jars = java.fetch_jars(tmp_path / "jars")
    maven.unlink()
    assert java.fetch_jars(tmp_path / "jars") == jars  # fetched once
    assert [path.name for path in (tmp_path / "jars").iterdir()] == [jars.name]


def test_the_job_server_jar_names_the_jars_beside_it(tmp_path: Path) -> None:
    names = [f"library-with-a-rather-long-name-{number}-1.0.jar" for number in range(9)]
    for name in [
        *names,
        "beam-runners.jar",
        "beam-vendor-grpc.jar",
        "flink-core.jar",
        "flink-shaded-netty.jar",
    ]:
        (tmp_path / name).touch()
    java._write_job_server_jar(tmp_path)
    with zipfile.ZipFile(tmp_path / java.JOB_SERVER_JAR) as jar:
        manifest = jar.read("META-INF/MANIFEST.MF").decode()
    assert all(len(line) <= 70 for line in manifest.splitlines())
    fields = dict(line.split(": ", 1) for line in manifest.replace("\r\n ", "").splitlines())
    assert fields["Main-Class"] == java.JOB_SERVER_CLASS
    assert set(names) < set(fields["Class-Path"].split())
    own, others = java.split_class_path(tmp_path)
    assert [Path(jar).name for jar in own.split(os.pathsep)] == [
        "beam-runners.jar",
        "flink-core.jar",
    ]
    assert len(others.split(os.pathsep)) == len(names) + 2
    assert java.JOB_SERVER_JAR not in java.class_path(tmp_path)


def test_a_port_is_taken_that_is_free_at_every_address() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        taken = listener.getsockname()[1]
        assert cluster._free_port(taken) != taken
    assert cluster._free_port(taken) == taken


def test_a_loopback_address_that_a_machine_lacks_is_named() -> None:
    with pytest.raises(
        java.ClusterError,
        match=r"no loopback address 192\.0\.2\.1, which the worker pool of a task",
    ):
        cluster._free_port(0, ["127.0.0.1", "192.0.2.1"])


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "what was waited for did not come"
        time.sleep(0.05)


@pytest.mark.parametrize("how", ["signal", "with a process"])
def test_a_supervisor_starts_again_what_ends_and_ends_all_at_last(tmp_path: Path, how: str) -> None:
    (tmp_path / supervisor.LOGS).mkdir()
    command = {"name": "sleeper", "argv": ["sleep", "600"], "environment": {}}
    write_json(tmp_path / supervisor.COMMANDS, [command])
    companion = subprocess.Popen(["sleep", "600"])
    watched = json.dumps(dataclasses.asdict(process_id(companion.pid)))
    with_process = [watched] if how != "signal" else []
    process = subprocess.Popen(
        [sys.executable, "-m", "deploy.flink.supervisor", str(tmp_path), *with_process],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )

    def sleeper() -> int:
        return dict(supervisor.running(tmp_path)).get("sleeper", 0)

    try:
        wait_for(lambda: sleeper() != 0)
        first = sleeper()
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: sleeper() not in (0, first))
        assert dict(supervisor.running(tmp_path))[supervisor.SUPERVISOR] == process.pid
        if how == "signal":
            process.terminate()
    finally:
        companion.kill()
        companion.wait()
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 0
    assert f"sleeper, process {first}, ended with -9" in said
    assert list(supervisor.running(tmp_path)) == []


def test_a_cluster_that_is_not_up_is_none(tmp_path: Path) -> None:
    assert cluster.read(tmp_path) is None
    assert not cluster.down(tmp_path / "absent")
    assert not cluster.down(tmp_path)
