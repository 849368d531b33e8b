"""Validates JSON against the part of JSON Schema that schema.json uses. An unknown keyword is an error: it
would check nothing."""
import json
import pathlib
import re

SCHEMA = json.loads((pathlib.Path(__file__).resolve().parent / "schema.json").read_text())
TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
KEYWORDS = {"$ref", "type", "properties", "required", "additionalProperties", "items", "minItems", "enum", "const",
            "pattern", "minimum", "anyOf"}


def has_type(value, name):
    if name == "integer":
        return isinstance(value, int) and not isinstance(value, bool)
    if name == "number":
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, TYPES[name])


def object_problems(value, schema, place):
    known = schema.get("properties", {})
    for name in schema.get("required", ()):
        if name not in value:
            yield "%s: %s is missing" % (place, name)
    for name, field in value.items():
        if name in known:
            yield from problems(field, known[name], "%s.%s" % (place, name))
        elif schema.get("additionalProperties", True) is False:
            yield "%s: %s is not in the schema" % (place, name)


def problems(value, schema, place="$"):
    """What of `value` is not as `schema` says."""
    unknown = set(schema) - KEYWORDS
    if unknown:
        raise ValueError("keywords that nobody checks: %s" % unknown)
    if "$ref" in schema:
        yield from problems(value, SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")], place)
        return
    if "anyOf" in schema:
        tried = [list(problems(value, choice, place)) for choice in schema["anyOf"]]
        if all(tried):
            yield min(tried, key=len)[0]
        return
    types = schema.get("type", [])
    types = [types] if isinstance(types, str) else types
    if types and not any(has_type(value, name) for name in types):
        yield "%s: %r is no %s" % (place, value, " or ".join(types))
        return
    if "enum" in schema and value not in schema["enum"] or "const" in schema and value != schema["const"]:
        yield "%s: %r is not one of %s" % (place, value, schema.get("enum", schema.get("const")))
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        yield "%s: %r does not match %s" % (place, value, schema["pattern"])
    if has_type(value, "number") and value < schema.get("minimum", value):
        yield "%s: %r is below %r" % (place, value, schema["minimum"])
    if isinstance(value, list):
        if len(value) < schema.get("minItems", 0):
            yield "%s: too few elements" % place
        for index, element in enumerate(value):
            yield from problems(element, schema.get("items", {}), "%s[%d]" % (place, index))
    if isinstance(value, dict):
        yield from object_problems(value, schema, place)


def check(name, document):
    """Raises when `document` is not what $defs/NAME says."""
    found = list(problems(document, SCHEMA["$defs"][name]))
    if found:
        raise AssertionError("%s: %s\n%s" % (name, "; ".join(found), json.dumps(document)[:2000]))
