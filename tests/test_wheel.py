"""The wheel as a user gets it: what is in it, and what Airflow makes of it in an environment of its own."""

from __future__ import annotations

import configparser
import email
import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from email.message import Message
from pathlib import Path

import pytest
from packaging.version import Version

import airflow_provider_amplemarket
from dev.matrix import LOWEST, SERIES, Series

ROOT = Path(airflow_provider_amplemarket.__file__).resolve().parents[1]
PACKAGE = "airflow_provider_amplemarket"
VERSION = airflow_provider_amplemarket.__version__


def run(*command: str | Path, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    """Run a program and return what it writes; what it complains of is shown where it fails."""
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env=env, cwd=cwd, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def versions(series: Series) -> dict[str, str]:
    """Read what a series is tested with."""
    return dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / series.constraints).read_text(), re.MULTILINE))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel."""
    directory = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", directory, cwd=ROOT)
    (built,) = directory.iterdir()
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel where all else is that of the current environment, but for the package itself."""
    directory = tmp_path_factory.mktemp("environment")
    venv.create(directory, symlinks=True, with_pip=True)
    rest = directory / "rest"
    rest.mkdir()
    for installed in {path for name in ("purelib", "platlib") for path in Path(sysconfig.get_path(name)).iterdir()}:
        # A .pth file could bring the working tree back in.
        if not installed.name.startswith((PACKAGE, "_editable")) and installed.suffix != ".pth":
            (rest / installed.name).symlink_to(installed)
    site = sysconfig.get_path("purelib", "venv", {"base": str(directory)})
    (Path(site) / "rest.pth").write_text(f"{rest}\n")
    python = directory / "bin" / "python"
    run(python, "-m", "pip", "install", "--no-deps", "--no-index", "--disable-pip-version-check", wheel)
    return python


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Give an environment with an empty home of Airflow and nothing else of this one's settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PYTHON", "COV_"))}
    home = tmp_path_factory.mktemp("airflow")
    return {**kept, "AIRFLOW_HOME": str(home), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}


@pytest.fixture(scope="module")
def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        return email.message_from_bytes(archive.read(f"{PACKAGE}-{VERSION}.dist-info/METADATA"))


class TestWhatIsInTheWheel:
    def test_its_name_says_package_version_and_that_it_runs_everywhere(self, wheel: Path) -> None:
        assert wheel.name == f"{PACKAGE}-{VERSION}-py3-none-any.whl"

    def test_it_has_the_package_and_nothing_else(self, names: list[str]) -> None:
        assert {name.partition("/")[0] for name in names} == {PACKAGE, f"{PACKAGE}-{VERSION}.dist-info"}
        assert not [name for name in names if "test" in name or "__pycache__" in name]

    def test_it_has_every_module_of_the_package(self, names: list[str]) -> None:
        sources = {str(path.relative_to(ROOT)) for path in (ROOT / PACKAGE).rglob("*.py")}
        assert sources == {name for name in names if name.endswith(".py")}

    def test_it_says_that_it_is_typed_and_what_its_licence_is(self, names: list[str], metadata: Message) -> None:
        assert f"{PACKAGE}/py.typed" in names
        assert f"{PACKAGE}-{VERSION}.dist-info/licenses/LICENSE" in names
        assert metadata["License-Expression"] == "Apache-2.0"

    def test_it_says_what_it_is_and_needs(self, metadata: Message) -> None:
        assert (metadata["Name"], metadata["Version"]) == ("airflow-provider-amplemarket", VERSION)
        assert metadata["Requires-Python"] == ">=3.11"
        needed = metadata.get_all("Requires-Dist", [])
        assert any(line.startswith("apache-airflow>=") for line in needed)
        always = [line for line in needed if "extra ==" not in line]
        assert not [line for line in always if any(store in line for store in ("amazon", "google", "azure", "fsspec"))]

    def test_its_extras_are_the_stores_and_nothing_for_developers(self, metadata: Message) -> None:
        assert set(metadata.get_all("Provides-Extra", [])) == {"s3", "gcs", "azure"}

    def test_it_says_where_the_project_is(self, metadata: Message) -> None:
        urls = dict(line.split(", ", 1) for line in metadata.get_all("Project-URL", []))
        assert set(urls) == {"Source", "Documentation", "Changelog", "Issues"}
        assert all(url.startswith(urls["Source"]) for url in urls.values())

    def test_it_names_the_pythons_of_the_matrix(self, metadata: Message) -> None:
        prefix = "Programming Language :: Python :: 3."
        named = {line.removeprefix(prefix) for line in metadata.get_all("Classifier", []) if line.startswith(prefix)}
        assert {f"3.{minor}" for minor in named} == {python for series in SERIES for python in series.pythons}

    def test_the_lowest_versions_it_allows_are_in_the_matrix(self, metadata: Message) -> None:
        tested = versions(LOWEST)
        assert (LOWEST.airflow, LOWEST.pythons[0]) == (tested["apache-airflow"], metadata["Requires-Python"][2:])
        for line in metadata.get_all("Requires-Dist", []):
            if "extra ==" not in line or "extra == 's3'" in line:
                for name, lowest in re.findall(r"^([\w-]+).*>=([\d.]+)", line):
                    assert Version(tested[name]) == Version(lowest), line

    def test_airflow_finds_the_provider_and_its_plugin_by_entry_points(self, wheel: Path) -> None:
        parser = configparser.ConfigParser()
        with zipfile.ZipFile(wheel) as archive:
            parser.read_string(archive.read(f"{PACKAGE}-{VERSION}.dist-info/entry_points.txt").decode())
        assert {section: dict(parser[section]) for section in parser.sections()} == {
            "apache_airflow_provider": {"provider_info": f"{PACKAGE}.get_provider_info:get_provider_info"},
            "airflow.plugins": {"amplemarket": f"{PACKAGE}.plugin:AmplemarketPlugin"},
        }


class TestTheMatrix:
    @pytest.mark.parametrize("series", SERIES, ids=lambda series: series.name)
    def test_the_readme_names_what_is_tested(self, series: Series) -> None:
        row = rf"^\| {re.escape(series.airflow)}\b.* \| {', '.join(series.pythons)} \| `{series.constraints}` \|$"
        assert re.search(row, (ROOT / "README.md").read_text(), re.MULTILINE)

    def test_the_readme_names_nothing_else(self) -> None:
        rows = re.findall(r"^\| 3\.\d+\.\d+\b", (ROOT / "README.md").read_text(), re.MULTILINE)
        assert len(rows) == len(SERIES)

    @pytest.mark.parametrize("series", SERIES, ids=lambda series: series.name)
    def test_the_constraints_are_of_that_airflow(self, series: Series) -> None:
        assert versions(series)["apache-airflow"] == series.airflow


class TestWhatAirflowMakesOfTheWheel:
    def test_the_package_comes_from_the_wheel(self, python: Path, env: dict[str, str]) -> None:
        code = f"""if True:
            import importlib.metadata, {PACKAGE}
            print({PACKAGE}.__file__)
            print(*[d.locate_file("") for d in importlib.metadata.distributions(name="{PACKAGE}")], sep="\\n")
        """
        found = [Path(line) for line in run(python, "-c", code, env=env, cwd=python.parent).splitlines()]
        site = found[0].parents[1]
        assert site.is_relative_to(python.parents[1])
        assert found[1:] == [site]

    def test_the_provider_is_listed(self, python: Path, env: dict[str, str], tmp_path: Path) -> None:
        listed = json.loads(run(python, "-m", "airflow", "providers", "list", "-o", "json", env=env, cwd=tmp_path))
        (found,) = [row for row in listed if row["package_name"] == "airflow-provider-amplemarket"]
        assert found["version"] == VERSION
        assert "Amplemarket" in found["description"]

    def test_the_hook_is_listed(self, python: Path, env: dict[str, str], tmp_path: Path) -> None:
        listed = json.loads(run(python, "-m", "airflow", "providers", "hooks", "-o", "json", env=env, cwd=tmp_path))
        (found,) = [row for row in listed if row["connection_type"] == "amplemarket"]
        assert found["class"] == f"{PACKAGE}.hooks.amplemarket.AmplemarketHook"
        assert found["conn_id_attribute_name"] == "amplemarket_conn_id"
        assert found["package_name"] == "airflow-provider-amplemarket"
        assert found["hook_name"] == "Amplemarket"

    def test_the_plugin_is_loaded(self, python: Path, env: dict[str, str], tmp_path: Path) -> None:
        listed = json.loads(run(python, "-m", "airflow", "plugins", "-o", "json", env=env, cwd=tmp_path))
        (found,) = [row for row in listed if row["name"] == "amplemarket"]
        assert "PoolListener" in str(found["listeners"])


PROBE = """
import importlib, json, socket, sys

opened = []

class Watched(socket.socket):
    def connect(self, address):
        opened.append(str(address))
        return super().connect(address)

def asked(*arguments, **options):
    opened.append(str(arguments))
    raise OSError("not here")

socket.socket = Watched
socket.getaddrinfo = asked
for name in sys.argv[1:]:
    importlib.import_module(name)
from airflow_provider_amplemarket.get_provider_info import get_provider_info
get_provider_info()
print(json.dumps({"opened": opened, "modules": sorted(sys.modules)}))
"""

STORES = {"s3fs", "gcsfs", "adlfs", "boto3", "botocore", "aiobotocore", "azure", "google.cloud", "moto"}


class TestWhatImportingCosts:
    def test_no_address_is_asked_for_and_no_store_is_loaded(self, env: dict[str, str], tmp_path: Path) -> None:
        modules = [PACKAGE + name for name in ("", ".plugin", ".hooks.amplemarket", ".operators.recording")]
        found = json.loads(run(sys.executable, "-c", PROBE, *modules, env=env, cwd=tmp_path).splitlines()[-1])
        assert found["opened"] == []
        assert set(modules) <= set(found["modules"])
        assert STORES.isdisjoint(found["modules"])

    @pytest.mark.parametrize("module", ["", ".get_provider_info"])
    def test_what_airflow_reads_at_every_start_loads_neither_airflow_nor_requests(
        self, env: dict[str, str], tmp_path: Path, module: str
    ) -> None:
        found = json.loads(run(sys.executable, "-c", PROBE, PACKAGE + module, env=env, cwd=tmp_path))
        assert {"airflow", "requests", "pendulum"}.isdisjoint(found["modules"])
