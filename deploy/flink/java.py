"""Java and the jars: what the cluster runs on."""

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

# What Flink and Beam look into by reflection, which newer Javas must be told to allow.
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
    """The cluster cannot be brought up; the message says what is missing."""


def find_java() -> str:
    """The Java to run: that of JAVA_HOME, else the one on PATH.

    Raises:
        ClusterError: there is none, or it is too old.
    """
    home = os.environ.get("JAVA_HOME")
    java = f"{home}/bin/java" if home else shutil.which("java")
    where = f"in JAVA_HOME={home}" if home else "on PATH"
    if java is None or shutil.which(java) is None:
        raise ClusterError(
            f"Flink needs Java {OLDEST_JAVA} or newer, and there is none {where}: install it (openjdk)"
        )
    said = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(?:1\.)?(\d+)', said)
    if version is None or int(version[1]) < OLDEST_JAVA:
        found = said.splitlines()[0] if said else "no version"
        raise ClusterError(
            f"Flink needs Java {OLDEST_JAVA} or newer; the one {where} says: {found}"
        )
    return java


def options() -> list[str]:
    """The options that every Java process of the cluster starts with."""
    opened = [f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in _OPENED]
    logs = [
        "-Dorg.slf4j.simpleLogger.showDateTime=true",
        "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS",
    ]
    return [*opened, *logs, "-Djava.net.preferIPv4Stack=true"]


def fetch_jars(folder: Path) -> Path:
    """Fetches the jars of the pom with Maven, once.

    Args:
        folder: what holds the jars of this pom and, in time, of others.

    Returns:
        The folder with the jars, named by the pom's content.

    Raises:
        ClusterError: there is no Maven, or it cannot reach its repository.
    """
    jars = folder.absolute() / f"jars-{hashlib.sha256(POM.read_bytes()).hexdigest()[:8]}"
    if jars.is_dir():
        return jars
    maven = shutil.which("mvn")
    if maven is None:
        raise ClusterError(
            "the jars of Flink and Beam are fetched with Maven, and there is no mvn on PATH: install it"
        )
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
    """The class path over a folder of jars."""
    return os.pathsep.join(split_class_path(jars))


def split_class_path(jars: Path) -> tuple[str, str]:
    """The class path in two: the jars of Beam and Flink themselves, and those of others, which know neither."""
    own: list[str] = []
    others: list[str] = []
    for jar in sorted(jars.glob("*.jar")):
        if jar.name != JOB_SERVER_JAR:
            (own if re.match(_OWN_JARS, jar.name) else others).append(str(jar))
    return os.pathsep.join(own), os.pathsep.join(others)


def _write_job_server_jar(jars: Path) -> None:
    """Writes a jar that `java -jar` starts Beam's job server from, as `--flink_job_server_jar` wants it.

    It holds nothing but the names of the jars beside it.
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
    # A manifest's lines are short; a space carries one on.
    first, rest = line[: _MANIFEST_LINE - 2], line[_MANIFEST_LINE - 2 :]
    step = _MANIFEST_LINE - 3
    return "".join(
        [first, *(f"\r\n {rest[at : at + step]}" for at in range(0, len(rest), step)), "\r\n"]
    )
