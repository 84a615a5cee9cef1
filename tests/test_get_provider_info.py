"""What Airflow reads of the provider: the schema holds, and the forms of old and new Airflow agree."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from importlib.resources import files
from types import ModuleType
from typing import Any

import airflow
import pytest
from airflow.providers_manager import ProvidersManager
from jsonschema import Draft7Validator

import airflow_provider_amplemarket
from airflow_provider_amplemarket.get_provider_info import CONNECTION_FIELDS, get_provider_info
from airflow_provider_amplemarket.hooks.amplemarket import AmplemarketHook
from airflow_provider_amplemarket.hooks.connection import settings_of

PACKAGE = "airflow-provider-amplemarket"
CONNECTION = get_provider_info()["connection-types"][0]
FORM = """
from airflow.api_fastapi.core_api.services.ui.connections import HookMetaService

(form,) = [meta for meta in HookMetaService.hook_meta_data() if meta.connection_type == "amplemarket"]
print(form.model_dump_json())
"""


def test_airflows_own_schema_holds() -> None:
    schema = json.loads(files("airflow").joinpath("provider_info.schema.json").read_text())
    Draft7Validator.check_schema(schema)
    assert list(Draft7Validator(schema).iter_errors(get_provider_info())) == []


def test_package_and_version_are_those_of_the_distribution() -> None:
    info = get_provider_info()
    assert info["package-name"] == PACKAGE
    assert info["versions"] == [airflow_provider_amplemarket.__version__]


@pytest.mark.parametrize("section", ["hooks", "operators", "triggers"])
def test_every_module_that_is_named_exists(section: str) -> None:
    info = get_provider_info()
    integrations = {integration["integration-name"] for integration in info["integrations"]}
    modules = [name for entry in info[section] for name in entry["python-modules"]]
    assert {entry["integration-name"] for entry in info[section]} <= integrations
    assert modules
    for name in modules:
        importlib.import_module(name)


def test_the_connection_type_is_that_of_the_hook() -> None:
    module, _, name = CONNECTION["hook-class-name"].rpartition(".")
    assert getattr(importlib.import_module(module), name) is AmplemarketHook
    assert CONNECTION["connection-type"] == AmplemarketHook.conn_type
    assert CONNECTION["hook-name"] == AmplemarketHook.hook_name
    assert AmplemarketHook.default_conn_name == f"{AmplemarketHook.conn_type}_default"
    assert AmplemarketHook.conn_name_attr in AmplemarketHook.__init__.__annotations__


def test_every_default_of_the_form_is_the_default_of_the_connection_and_keeps_its_own_schema() -> None:
    from airflow.providers.common.compat.sdk import Connection

    found = settings_of(Connection(conn_id="mine", conn_type="amplemarket", password="x"), name="mine")
    for name, field in CONNECTION_FIELDS.items():
        Draft7Validator.check_schema(field["schema"])
        assert getattr(found, name.removeprefix("recording_")) == field["schema"]["default"]
        validator = Draft7Validator(field["schema"])
        assert validator.is_valid(field["schema"]["default"])
        assert validator.is_valid(None)
        assert not validator.is_valid(0)


def test_the_setting_of_the_plugin_is_described() -> None:
    option = get_provider_info()["config"]["amplemarket"]["options"]["create_pool"]
    assert (option["type"], option["default"]) == ("boolean", "True")


def test_the_answer_can_be_changed_by_who_gets_it() -> None:
    get_provider_info()["versions"].append("changed")
    assert "changed" not in get_provider_info()["versions"]


class TestTheFormOfThisAirflow:
    def test_the_provider_is_found_by_its_entry_point(self) -> None:
        provider = ProvidersManager().providers[PACKAGE]
        assert provider.version == airflow_provider_amplemarket.__version__
        assert provider.data["name"] == "Amplemarket"

    @pytest.mark.filterwarnings("ignore:ProvidersManager.hooks is deprecated")
    def test_the_hook_is_offered(self) -> None:
        hook = ProvidersManager().hooks["amplemarket"]
        assert hook is not None
        assert hook.hook_class_name == CONNECTION["hook-class-name"]
        assert (hook.hook_name, hook.connection_type) == ("Amplemarket", "amplemarket")
        assert hook.connection_id_attribute_name == "amplemarket_conn_id"
        # What the button "Test" asks for.
        assert hook.connection_testable

    @pytest.mark.skipif(
        airflow.__version__.startswith("3.0.") and importlib.util.find_spec("flask_appbuilder") is None,
        reason="Airflow 3.0 makes the form of no provider without the FAB provider",
    )
    def test_the_form_has_labels_hidden_fields_and_defaults(self) -> None:
        # Airflow reads the hooks once; 3.1 without the form, where it is not the API server that asks first.
        told = subprocess.run([sys.executable, "-W", "ignore", "-c", FORM], capture_output=True, text=True, check=True)
        form = json.loads(told.stdout.splitlines()[-1])
        standard = form["standard_fields"]
        assert form["hook_name"] == "Amplemarket"
        assert (standard["host"]["title"], standard["host"]["hidden"]) == ("Base URL", False)
        assert standard["host"]["placeholder"] == "https://api.amplemarket.com"
        assert (standard["password"]["title"], standard["password"]["hidden"]) == ("API key", False)
        assert all(standard[name]["hidden"] for name in ("login", "port", "url_schema"))
        assert standard["description"] is None
        extra = form["extra_fields"]
        assert {name: (field["schema"]["title"], field["value"]) for name, field in extra.items()} == {
            "recording_limit": ("Recording limit (requests)", 50),
            "recording_period": ("Recording period (seconds)", 3600),
            "timeout": ("Time-out (seconds)", 60),
        }


class TestTheFormOfOlderAirflow:
    """Before 3.2 the form was made by two methods of the hook."""

    def test_the_standard_fields_are_the_same(self) -> None:
        behaviour = AmplemarketHook.get_ui_field_behaviour()
        schema = json.loads(files("airflow").joinpath("customized_form_field_behaviours.schema.json").read_text())
        assert list(Draft7Validator(schema).iter_errors(behaviour)) == []
        described = CONNECTION["ui-field-behaviour"]
        assert behaviour == {
            "hidden_fields": described["hidden-fields"],
            "relabeling": described["relabeling"],
            "placeholders": described["placeholders"],
        }

    def test_the_extra_fields_are_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, members in stand_ins().items():
            if not installed(name):
                module = ModuleType(name)
                vars(module).update(members)
                monkeypatch.setitem(sys.modules, name, module)
        widgets = AmplemarketHook.get_connection_form_widgets()
        assert list(widgets) == list(CONNECTION_FIELDS)
        for name, widget in widgets.items():
            described = CONNECTION_FIELDS[name]
            assert widget.field_class.__name__ == "IntegerField"
            assert [str(argument) for argument in widget.args] == [described["label"]]
            assert widget.kwargs["description"] == described["description"]
            assert widget.kwargs["default"] == described["schema"]["default"]
            assert [type(validator).__name__ for validator in widget.kwargs["validators"]] == ["Optional"]
            assert type(widget.kwargs["widget"]).__name__ == "BS3TextFieldWidget"


class IntegerField:
    """As much of a field as an unbound one of WTForms shows."""

    def __init__(self, *args: object, **kwargs: Any) -> None:
        self.field_class = IntegerField
        self.args = args
        self.kwargs = kwargs


def stand_ins() -> dict[str, dict[str, object]]:
    """Give what Airflow 3 does not install, as its own API server does."""
    return {
        "flask_appbuilder": {},
        "flask_appbuilder.fieldwidgets": {"BS3TextFieldWidget": type("BS3TextFieldWidget", (), {})},
        "flask_babel": {"lazy_gettext": str},
        "wtforms": {"IntegerField": IntegerField},
        "wtforms.validators": {"Optional": type("Optional", (), {})},
    }


def installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ModuleNotFoundError, ValueError):
        return False
