"""The JSON Schema of the files, from the models that check them, for editors.

An editor that knows the language server of YAML takes it from a comment in the file's first line:
``# yaml-language-server: $schema=../schema/device.json``.
"""

from __future__ import annotations

import json
from typing import Any

from perfmodel.hardware.check import FORMS

__all__ = ["schemas"]


def schemas() -> dict[str, str]:
    """The text of each schema file, by its name.

    A file with ``base:`` may leave out what its base says, so nothing but ``schema`` and ``name`` is required then.
    """
    texts = {}
    for kind, form in FORMS.items():
        schema = form.model_json_schema(by_alias=True)
        required = schema.pop("required", [])
        schema["properties"]["base"] = {
            "description": "name of a description that this one is based on, or the path of its file",
            "type": "string",
        }
        schema["anyOf"] = [{"required": ["base"]}, {"required": required}]
        for part in (schema, *schema.get("$defs", {}).values()):
            _relax(part)
        schema["required"] = ["schema", "name"]
        schema = {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": f"perfmodel {kind}",
            **{key: value for key, value in schema.items() if key != "title"},
        }
        texts[f"{kind}.json"] = json.dumps(schema, indent=1, ensure_ascii=False) + "\n"
    return texts


def _relax(part: dict[str, Any]) -> None:
    """A mapping below a base may be a part of one, and any key may be removed with null; a number is always whole."""
    properties = part.get("properties", {})
    if "value" in properties and "source" in properties:
        properties["value"] = {"description": "a number with its unit", "type": ["string", "number"]}
        return
    part.pop("required", None)
    for key, member in properties.items():
        if isinstance(member.get("additionalProperties"), dict):
            member["additionalProperties"] = _or_null(member["additionalProperties"])
        if key not in ("schema", "name"):
            properties[key] = _or_null(member)


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    null = {"type": "null"}
    if null in schema.get("anyOf", []):
        return schema
    notes: dict[str, Any] = {key: schema[key] for key in ("title", "description", "default") if key in schema}
    return {**notes, "anyOf": [{key: value for key, value in schema.items() if key not in notes}, null]}
