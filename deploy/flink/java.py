"""Finds Java and fetches the jars of Flink and of Beam's job server."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

POM = Path(__file__).with_name("pom.xml")
OLDEST_JAVA = 11
JOB_SERVER_CLASS = "org.apache.beam.runners.flink.FlinkJobServerDriver"
JOB_SERVER_JAR = "beam-flink-job-server.jar"

# Packages that Flink and Beam access by reflection, which newer versions of Java forbid by default.
_OPENED = (
    "java.lang",
    "java.lang.reflect",
    "java.io",
    "java.net",
    "java.nio",
    "java.text",
    "java.time",
    "java.util",
    "java.util.concurrent",
    "java.util.concurrent.atomic",
    "java.util.concurrent.locks",
    "sun.nio.ch",
)
_OWN_JARS = r"beam-(?!vendor)|flink-(?!shaded|rpc-akka)|slf4j-"
_MANIFEST_LINE = 72


class ClusterError(Exception):
    """The cluster cannot be started; the message says what is missing."""


def find_java() -> str:
    """Returns the path of the Java to run: the one in JAVA_HOME, or else the one on PATH.

    Raises:
        ClusterError: Java is missing or too old.
    """
    home = os.environ.get("JAVA_HOME")
    java = f"{home}/bin/java" if home else shutil.which("java")
    where = f"in JAVA_HOME={home}" if home else "on PATH"
    if java is None or shutil.which(java) is None:
        raise ClusterError(
            f"Flink needs Java {OLDEST_JAVA} or newer, but there is none {where}: "
            "install a JDK such as openjdk"
        )

    output = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(?:1\.)?(\d+)', output)
    if version is None or int(version[1]) < OLDEST_JAVA:
        reported = output.splitlines()[0] if output else "no version"
        raise ClusterError(
            f"Flink needs Java {OLDEST_JAVA} or newer; the one {where} reports: {reported}"
        )
    return java


def options() -> list[str]:
    """Returns the options of every Java process of the cluster."""
    opened = [f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in _OPENED]
    logs = [
        "-Dorg.slf4j.simpleLogger.showDateTime=true",
        "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS",
    ]
    return [*opened, *logs, "-Djava.net.preferIPv4Stack=true"]


def fetch_jars(folder: Path) -> Path:
    """Fetches the jars of the pom with Maven, unless they were fetched before.

    Args:
        folder: Folder that contains one subfolder of jars per version of the pom.

    Returns:
        The subfolder with the jars, named after a digest of the pom.

    Raises:
        ClusterError: Maven is missing, or it cannot reach its repository.
    """
    jars = folder.absolute() / f"jars-{hashlib.sha256(POM.read_bytes()).hexdigest()[:8]}"
    if jars.is_dir():
        return jars
    maven = shutil.which("mvn")
    if maven is None:
        raise ClusterError(
            "Maven fetches the jars of Flink and Beam, but there is no mvn on PATH: install Maven"
        )

    # Maven writes to a folder of this process, which is renamed when complete.
    parts = jars.with_name(f"{jars.name}.{os.getpid()}.part")
    copy = [
        maven,
        "-q",
        "-B",
        "-f",
        str(POM),
        "dependency:copy-dependencies",
        f"-DoutputDirectory={parts}",
    ]
    done = subprocess.run(
        copy, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    try:
        if done.returncode:
            raise ClusterError(
                f"Maven could not fetch the jars of {POM}:\n{done.stdout.strip()[-2000:]}"
            )
        _write_job_server_jar(parts)
        if not jars.is_dir():
            parts.rename(jars)
    finally:
        shutil.rmtree(parts, ignore_errors=True)
    return jars


def class_path(jars: Path) -> str:
    """Returns the class path of a folder of jars."""
    return os.pathsep.join(split_class_path(jars))


def split_class_path(jars: Path) -> tuple[str, str]:
    """Returns two class paths: the jars of Beam and Flink, and all other jars."""
    own: list[str] = []
    others: list[str] = []
    for jar in sorted(jars.glob("*.jar")):
        if jar.name != JOB_SERVER_JAR:
            (own if re.match(_OWN_JARS, jar.name) else others).append(str(jar))
    return os.pathsep.join(own), os.pathsep.join(others)


def _write_job_server_jar(jars: Path) -> None:
    """Writes a jar for `--flink_job_server_jar`, from which `java -jar` starts Beam's job server.

    The jar contains only a manifest with the names of the jars in its folder.
    """
    lines = [
        "Manifest-Version: 1.0",
        f"Main-Class: {JOB_SERVER_CLASS}",
        f"Add-Opens: {' '.join(f'java.base/{package}' for package in _OPENED)}",
        f"Class-Path: {' '.join(jar.name for jar in sorted(jars.glob('*.jar')))}",
    ]
    with zipfile.ZipFile(jars / JOB_SERVER_JAR, "w") as jar:
        jar.writestr("META-INF/MANIFEST.MF", "".join(map(_manifest_lines, lines)))


def _manifest_lines(line: str) -> str:
    # A manifest's lines have at most 72 bytes; a leading space continues the line before.
    first, rest = line[: _MANIFEST_LINE - 2], line[_MANIFEST_LINE - 2 :]
    step = _MANIFEST_LINE - 3
    return "".join(
        [first, *(f"\r\n {rest[at : at + step]}" for at in range(0, len(rest), step)), "\r\n"]
    )
