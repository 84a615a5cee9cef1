"""Test the wheel with every Airflow and every Python that it is for, each in an environment of its own.

Without arguments: all members of the matrix whose Python is on this machine. Else: the named ones. ``ends`` names the
oldest and the newest of them.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from dev.checkout import CHECKOUT

ENVIRONMENTS = CHECKOUT / ".venv-matrix"
#: Small enough that the twenty recordings of the example DAG need two periods, and one wait in the triggerer.
QUOTA = {"LIMIT": "10", "PERIOD": "20"}
#: Seconds after which a step is given up.
PATIENCE = 1200
#: What tests the checkout rather than the installed package.
LEFT_OUT = ("test_docs.py", "test_wheel.py", "e2e", "__pycache__")
UV = (sys.executable, "-m", "uv")


@dataclass(frozen=True)
class Series:
    """Versions that are tested together.

    :param name: what it is called.
    :param airflow: the version of Airflow.
    :param pythons: the versions of Python it is tested with, oldest first.
    :param constraints: the file with the version of every package, below the checkout.
    :param before: its other packages are those of this day: an Airflow pins few of them, and what came long after it
        can be too new for it. None where ``make constraints`` chooses them.
    :param compat_before: the day for the compatibility provider, where our lower bound of it came after ``before``.
    """

    name: str
    airflow: str
    pythons: tuple[str, ...]
    constraints: str
    before: str | None = None
    compat_before: str | None = None


#: The lower bounds of pyproject.toml: nothing else would notice that one of them is too low.
LOWEST = Series("lowest", "3.0.2", ("3.11",), "constraints/lowest.txt", "2025-09-05", "2026-01-20")
#: What all other tests run with, too.
NEWEST = Series("airflow-3.3", "3.3.2", ("3.11", "3.12", "3.13"), "constraints/newest.txt")
SERIES = (
    LOWEST,
    Series("airflow-3.0", "3.0.6", ("3.11", "3.12"), "constraints/airflow-3.0.txt", "2025-09-05", "2026-01-20"),
    Series("airflow-3.1", "3.1.8", ("3.11", "3.12", "3.13"), "constraints/airflow-3.1.txt", "2026-03-20"),
    Series("airflow-3.2", "3.2.2", ("3.11", "3.12", "3.13"), "constraints/airflow-3.2.txt", "2026-06-07"),
    NEWEST,
)


class StepError(Exception):
    """A step of a member did not work."""


@dataclass(frozen=True)
class Member:
    """One environment of the matrix."""

    series: Series
    python: str

    @property
    def name(self) -> str:
        """What the member and its folder are called."""
        return f"{self.series.name}-py{self.python}"

    @property
    def log(self) -> Path:
        """The output of all its steps."""
        return ENVIRONMENTS / f"{self.name}.log"

    def check(self, wheel: Path) -> bool:
        """Test the wheel, and print how it went; what fails is shown."""
        python = find_python(self.python)
        if python is None:
            self.show(f"SKIPPED: there is no Python {self.python} on this machine")
            return os.environ.get("CI") != "true"
        began = time.monotonic()
        self.log.unlink(missing_ok=True)
        try:
            result = self.test(self.install(python, wheel))
        except StepError as error:
            self.show(f"FAILED; all output is in {self.log.relative_to(CHECKOUT)}\n\n{error}\n")
            return False
        self.show(f"ok: {result}; the example DAG with a deferral; {time.monotonic() - began:.0f} s")
        return True

    def show(self, what: str) -> None:
        """Print something about the member."""
        print(f"{self.name:18} Airflow {self.series.airflow}  Python {self.python}  {what}", flush=True)

    def install(self, python: Path, wheel: Path) -> Path:
        """Make the environment anew, with the wheel in it, and return its Python."""
        directory = ENVIRONMENTS / self.name
        versions = CHECKOUT / self.series.constraints
        self.run(*UV, "venv", "-q", "--clear", "--python", python, directory)
        self.run(*UV, "pip", "install", "-q", "--python", directory, "-c", versions, f"{wheel}[s3]", "--group", "test")
        return directory / "bin" / "python"

    def test(self, python: Path) -> str:
        """Run the unit tests and the example DAG, and return how many tests there were."""
        with tempfile.TemporaryDirectory(prefix="amplemarket-matrix-") as directory:
            copy = Path(directory)
            # In the checkout, the package's own folder would be imported instead of what is installed.
            for folder in ("dags", "tests", "dev"):
                shutil.copytree(CHECKOUT / folder, copy / folder, ignore=shutil.ignore_patterns(*LEFT_OUT))
            shutil.copy(CHECKOUT / "pyproject.toml", copy)
            asked = "import airflow, airflow_provider_amplemarket as it; print(airflow.__version__, it.__file__)"
            version, imported = self.run(python, "-W", "ignore", "-c", asked, cwd=copy).split()[-2:]
            if version != self.series.airflow or not Path(imported).is_relative_to(ENVIRONMENTS / self.name):
                raise StepError(f"it would test Airflow {version} and {imported} instead of the wheel")
            # Older packages warn of newer ones; that is theirs to mend.
            options = ("-q", "-p", "no:cacheprovider", "-W", "default", "-o", "faulthandler_timeout=120")
            tests = self.run(python, "-m", "pytest", *options, cwd=copy, AMPLEMARKET_TEST_STORES="local,moto")
            self.run(python, "-m", "dev.scheduled", cwd=copy, DEMO_HOME=str(copy / "home"), PORT="0", **QUOTA)
        return re.sub(r", \d+ warnings?| in .*", "", tests.splitlines()[-1].strip("= "))

    def run(self, *command: str | Path, cwd: Path = CHECKOUT, **env: str) -> str:
        """Run a command and return its output, which is also logged."""
        left_out = ("AIRFLOW", "AMPLEMARKET", "PYTHON", "VIRTUAL_ENV")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
        path = f"{ENVIRONMENTS / self.name / 'bin'}{os.pathsep}{os.environ['PATH']}"
        line = [str(part) for part in command]
        with self.log.open("a+") as log:
            print("$", *line, file=log, flush=True)
            began = log.tell()
            try:
                full = {**kept, "PATH": path, **env}
                code = subprocess.run(line, cwd=cwd, env=full, stdout=log, stderr=log, timeout=PATIENCE).returncode
            except subprocess.TimeoutExpired:
                code = None
            log.seek(began)
            output = log.read()
        if code != 0:
            outcome = "does not end" if code is None else f"ended with {code}"
            raise StepError(f"{' '.join(line)} {outcome}:\n{output[-6000:]}")
        return output


MEMBERS = [Member(series, python) for series in SERIES for python in series.pythons]


def main() -> int:
    """Run what is asked for; 0 only if all of it worked."""
    parser = argparse.ArgumentParser(prog="python -m dev.matrix", description=__doc__)
    names = {member.name: member for member in MEMBERS}
    parser.add_argument("members", nargs="*", metavar="member", help=f"ends, or any of {', '.join(names)}")
    parser.add_argument("--jobs", type=int, default=1, help="how many to test side by side")
    parser.add_argument("--resolve", action="store_true", help="choose the versions in constraints/ anew; test nothing")
    options = parser.parse_args()
    if unknown := set(options.members) - {"ends", *names}:
        parser.error(f"there is no {', '.join(sorted(unknown))}; choose from ends, {', '.join(names)}")
    if options.resolve:
        for series in SERIES:
            resolve(series)
        return 0
    chosen = [member for member in MEMBERS if not options.members or member.name in options.members]
    if "ends" in options.members:
        chosen += [member for member in ends() if member not in chosen]
    ENVIRONMENTS.mkdir(exist_ok=True)
    wheel = build_wheel()
    with ThreadPoolExecutor(options.jobs) as jobs:
        worked = list(jobs.map(lambda member: member.check(wheel), chosen))
    if failed := [member.name for member, did in zip(chosen, worked, strict=True) if not did]:
        print(f"\nFailed: {', '.join(failed)}")
        return 1
    return 0


def ends() -> list[Member]:
    """Return the oldest and the newest member that this machine has a Python for."""
    newest = [python for python in NEWEST.pythons if find_python(python)]
    return [Member(LOWEST, LOWEST.pythons[0]), Member(NEWEST, (newest or NEWEST.pythons)[-1])]


def build_wheel() -> Path:
    """Build the wheel and return where it is."""
    directory = ENVIRONMENTS / "dist"
    shutil.rmtree(directory, ignore_errors=True)
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)]
    subprocess.run(command, cwd=CHECKOUT, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = directory.glob("*.whl")
    return wheel


def resolve(series: Series) -> None:
    """Choose the versions of a series, as they were on its day."""
    if not series.before:
        return
    wanted = [f"apache-airflow=={series.airflow}"]
    if series is LOWEST:
        project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
        bounded = [*project["dependencies"], *project["optional-dependencies"]["s3"]]
        wanted += [requirement.replace(">=", "==") for requirement in bounded if ">=" in requirement]
    print(f"{series.constraints}: Airflow {series.airflow}, packages of {series.before}", flush=True)
    command = [*UV, "pip", "compile", "-q", "--upgrade", "--universal", "--python-version", series.pythons[0]]
    command += ["--exclude-newer", series.before, "--extra", "s3", "--group", "test", "--no-annotate", "--no-header"]
    if series.compat_before:
        command += ["--exclude-newer-package", f"apache-airflow-providers-common-compat={series.compat_before}"]
    command += ["-o", series.constraints, "pyproject.toml", "-"]
    subprocess.run(command, cwd=CHECKOUT, input="\n".join(wanted), text=True, check=True, stdout=subprocess.DEVNULL)
    # A constraint installs nothing, so it needs no conditions.
    text = (CHECKOUT / series.constraints).read_text()
    (CHECKOUT / series.constraints).write_text(re.sub(r" *;.*", "", text))


def find_python(version: str) -> Path | None:
    """Find a Python of that version: the running one's own, on the PATH, or one that pyenv has."""
    on_path = shutil.which(f"python{version}")
    of_pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    for candidate in [Path(sys.base_prefix, "bin", "python3"), *([Path(on_path)] if on_path else []), *of_pyenv]:
        # pyenv puts a shim on the PATH for every Python that it has; only those of the chosen ones work.
        command = [str(candidate), "-c", "import sys; print('%d.%d' % sys.version_info[:2], sys.executable)"]
        done = subprocess.run(command, capture_output=True, text=True)
        found, _, executable = done.stdout.strip().partition(" ")
        if done.returncode == 0 and found == version:
            return Path(executable)
    return None


if __name__ == "__main__":
    sys.exit(main())
