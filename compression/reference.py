"""The page of the documentation that is made from the passes: docs/passes.md.

`python -m compression.reference` writes it; a test checks that it is current.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from compression.base import AnyPass, Settings
from compression.model import Form
from compression.registry import PASSES

PAGE = Path(__file__).resolve().parents[1] / "docs" / "passes.md"
EXAMPLE = """{
  "name": "small-int8",
  "steps": [
    {"pass": "prune-structured", "settings": {"ratio": 0.5, "round_to": 16}},
    {"pass": "distill", "settings": {"student": "current"}},
    {"pass": "int8-static", "settings": {"calibration": "entropy"}}
  ]
}"""
_TOP = f"""# Passes

Made from the code by `python -m compression.reference`.

A recipe is a list of passes, each with settings; what is left out has its default. In a spec a step is
`step("prune-structured", ratio=0.5)`; in a file a recipe is

```json
{EXAMPLE}
```

`mipgate build MODEL --recipe-file small-int8.json` builds it. Types are JSON's: in Python `null` is `None`.
[techniques.md](techniques.md) says what each technique buys.

"""
_FORMS = {Form.TORCH: "a torch module", Form.ONNX: "an ONNX graph"}
_ATTRIBUTE = re.compile(r"^    (\w+): ")
_NAMES = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}


def passes_page() -> str:
    """The text of docs/passes.md."""
    contents = ", ".join(f"[{name}](#{name})" for name in PASSES)
    return _TOP + contents + "\n" + "".join(_section(name, each) for name, each in PASSES.items())


def _section(name: str, each: type[AnyPass]) -> str:
    file = Path(inspect.getfile(each)).name
    about = f"Takes {_FORMS[each.takes]}, gives {_FORMS[each.gives]}. [{file}](../compression/{file})"
    return f"\n## {name}\n\n{inspect.getdoc(each)}\n\n{about}\n\n{_settings(each.settings_class)}"


def _settings(settings: type[Settings]) -> str:
    """A table with a row per setting."""
    schemas, meanings = settings.model_json_schema()["properties"], _meanings(settings)
    rows = [
        f"| `{name}` | {_type(schemas[name])} | {_default(settings, name)} | {_cell(meanings[name])} |\n"
        for name in settings.model_fields
    ]
    return "| setting | type | default | |\n|---|---|---|---|\n" + "".join(rows) if rows else "No settings.\n"


def _meanings(settings: type[Settings]) -> dict[str, str]:
    """What docstrings say of each setting, a class before those that it inherits from."""
    found: dict[str, str] = {}
    for each in reversed(settings.__mro__):
        if issubclass(each, Settings):
            found |= _attributes(inspect.cleandoc(each.__doc__ or ""))
    return found


def _attributes(text: str) -> dict[str, str]:
    """The section `Attributes` of a docstring, by name."""
    found: dict[str, str] = {}
    name = ""
    for line in text.partition("\nAttributes:\n")[2].splitlines():
        if match := _ATTRIBUTE.match(line):
            name = match[1]
            found[name] = line[match.end() :]
        elif name:
            found[name] += f" {line.strip()}"
    return found


def _type(schema: Mapping[str, Any]) -> str:
    """A setting's type for people."""
    if "anyOf" in schema:
        return ", or ".join(_type(each) for each in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{json.dumps(each)}`" for each in schema.get("enum", [schema.get("const")]))
    match schema["type"]:
        case "null":
            return "null"
        case "array" if "prefixItems" in schema:
            return f"list of {len(schema['prefixItems'])}: {_type(schema['prefixItems'][0])}"
        case "array":
            return f"list of: {_type(schema['items'])}"
        case "object":
            return f"object of: {_type(schema['additionalProperties'])}"
        case kind:
            return _NAMES[kind] + _bounds(schema)


def _bounds(schema: Mapping[str, Any]) -> str:
    bounds = {
        "minimum": "at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    said = [f"{phrase} {schema[key]:g}" for key, phrase in bounds.items() if key in schema]
    return " " + ", ".join(said) if said else ""


def _default(settings: type[Settings], name: str) -> str:
    field = settings.model_fields[name]
    if field.is_required():
        return "must be given"
    return f"`{json.dumps(to_jsonable_python(field.get_default(call_default_factory=True)))}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    """Writes the page."""
    PAGE.write_text(passes_page())


if __name__ == "__main__":
    main()
