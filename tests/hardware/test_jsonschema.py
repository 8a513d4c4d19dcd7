"""The JSON Schemas in the repository are those of the code, and the files meet them."""

import json
from pathlib import Path

import pytest

from perfmodel.hardware.jsonschema import schemas
from perfmodel.yamlfile import parse_yaml

SPECS = Path(__file__).parents[2] / "hardware_specs"
FOLDERS = {"device.json": "devices", "node.json": "nodes", "fabric.json": "fabrics", "cluster.json": "clusters"}


@pytest.mark.parametrize("name", FOLDERS)
def test_the_published_schema_is_current(name):
    assert (SPECS / "schema" / name).read_text(encoding="utf-8") == schemas()[name], (
        "run: perfmodel hardware schema hardware_specs/schema"
    )


def unmet(schema, value, whole, at="$"):
    """What of a schema a value doesn't meet: the keywords that ours use, and no others."""
    known = {"$ref", "anyOf", "type", "properties", "required", "additionalProperties", "items", "enum", "const"}
    notes = {"title", "description", "default", "$schema", "$defs"}
    bounds = {"minimum", "maximum", "minLength", "minItems", "maxItems", "maxLength", "pattern"}
    assert set(schema) <= known | notes | bounds, set(schema) - known - notes - bounds
    if "$ref" in schema:
        return unmet(whole["$defs"][schema["$ref"].removeprefix("#/$defs/")], value, whole, at)
    found = []
    if "anyOf" in schema:
        options = [unmet(option, value, whole, at) for option in schema["anyOf"]]
        if all(options):
            found += min(options, key=len)
    types = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None), "number": (int, float)}
    types["integer"] = int
    wanted = schema.get("type")
    if wanted and not any(isinstance(value, types[kind]) for kind in ([wanted] if isinstance(wanted, str) else wanted)):
        return [f"{at} is not {wanted}"]
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{at} is not one of {schema['enum']}")
    if "const" in schema and value != schema["const"]:
        found.append(f"{at} is not {schema['const']}")
    if isinstance(value, dict):
        found += [f"{at}.{key} is missing" for key in schema.get("required", []) if key not in value]
        for key, member in value.items():
            inner = schema.get("properties", {}).get(key, schema.get("additionalProperties", {}))
            if inner is False:
                found.append(f"{at}.{key} is unknown")
            elif isinstance(inner, dict):
                found += unmet(inner, member, whole, f"{at}.{key}")
    if isinstance(value, list) and "items" in schema:
        for index, member in enumerate(value):
            found += unmet(schema["items"], member, whole, f"{at}[{index}]")
    return found


@pytest.mark.parametrize("name", FOLDERS)
def test_the_shipped_files_meet_it(name):
    schema = json.loads(schemas()[name])
    paths = list((SPECS / FOLDERS[name]).glob("*.yaml"))
    assert len(paths) > 10
    for path in paths:
        assert unmet(schema, parse_yaml(path.read_text(encoding="utf-8"), str(path)).plain(), schema) == []


def test_wrong_files_do_not_meet_it():
    schema = json.loads(schemas()["device.json"])
    path = SPECS / "devices" / "nvidia-t4.yaml"
    plain = parse_yaml(path.read_text(encoding="utf-8"), str(path)).plain()
    assert unmet(schema, plain | {"bandwith": 3}, schema) == ["$.bandwith is unknown"]
    assert unmet(schema, plain | {"execution": "eager"}, schema)
    assert unmet(schema, plain | {"year": "2020"}, schema)
    assert unmet(schema, {"schema": "device/1", "name": "x"}, schema)
