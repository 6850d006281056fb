"""Facts have one home: a constant that modules share is imported from where it is defined."""

from __future__ import annotations

import ast
from pathlib import Path

import musedask

ROOT = Path(musedask.__file__).parent


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        yield path.relative_to(ROOT.parent).with_suffix("").parts, ast.parse(path.read_text())


def constants(tree):
    """Names in capitals that a module assigns."""
    for node in tree.body:
        for target in node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]:
            for name in ast.walk(target) if target is not None else ():
                if isinstance(name, ast.Name) and name.id.isupper():
                    yield name.id


def test_constants_are_imported_from_where_they_are_defined():
    defined = {".".join(parts): set(constants(tree)) for parts, tree in modules()}
    wrong = []
    for parts, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level and node.module:
                source = ".".join((*parts[: -node.level], node.module))
                wrong += [
                    f"{'/'.join(parts)}: {alias.name} of {source}"
                    for alias in node.names
                    if alias.name.isupper() and source in defined and alias.name not in defined[source]
                ]
    assert not wrong


def test_flags_and_version_are_defined_once():
    homes: dict[str, list[str]] = {}
    for parts, tree in modules():
        for name in constants(tree):
            if name.startswith("DQ_") or name == "DRS_VERSION":
                homes.setdefault(name, []).append("/".join(parts))
    assert {"DQ_SATURATED", "DRS_VERSION"} <= set(homes)
    assert not {name: where for name, where in homes.items() if len(where) > 1}
