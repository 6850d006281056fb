"""Pages on recipes, from their declarations: for the documentation and for ``musedask recipe``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .recipe import Input, Parameter, Product, Recipe
from .recipes import NATIVE, RECIPES
from .tags import TAGS

#: commands that do the work of a recipe without its engines
_COMMANDS = {"muse_exp_combine": "musedask combine", "muse_scipost_make_cube": "musedask make-cube"}
EXPERT = "†"


def engines_of(recipe: Recipe) -> tuple[str, ...]:
    """What a recipe can run on."""
    return ("esorex", "native") if recipe.name in NATIVE else ("esorex",)


def recipe_list() -> str:
    """Table of all recipes, as plain text."""
    rows = [("recipe", "calls", "engines", "what it does")]
    rows += [
        (r.name, "per IFU" if r.per_ifu else "one", ", ".join(engines_of(r)), r.synopsis) for r in RECIPES.values()
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = ("  ".join([*(text.ljust(n) for text, n in zip(row, widths, strict=False)), row[3]]) for row in rows)
    return "\n".join(line.rstrip() for line in lines) + "\n"


def recipe_index() -> str:
    """Table of all recipes for the documentation, in Markdown."""
    rows = (
        (f"[{r.name}]({r.name}.md)", r.synopsis, "yes" if r.per_ifu else "no", ", ".join(engines_of(r)))
        for r in RECIPES.values()
    )
    return table(("recipe", "", "a call for each IFU", "engines"), rows)


def recipe_page(recipe: Recipe) -> str:
    """All about a recipe, in Markdown."""
    calls = "one for each IFU" if recipe.per_ifu else "one for all IFUs" if recipe.exposures else "one"
    about = [
        f"* run: `musedask recipe run {recipe.name} SOF`",
        f"* calls: {calls}",
        f"* engines: {', '.join(engines_of(recipe))}",
    ]
    if recipe.name in _COMMANDS:
        about.append(f"* natively, in bounded memory: `{_COMMANDS[recipe.name]}`")
    parts = [f"# {recipe.name}\n\n{recipe.synopsis}\n\n" + "\n".join(about) + "\n"]
    each = ", for each IFU" if recipe.exposures else ""
    for title, inputs in (("Input", recipe.inputs), ("Input instead", recipe.alternative)):
        if inputs:
            rows = ((f"`{i.tag}`", _kind(i), i.count_text(), _what(i)) for i in inputs)
            parts.append(f"## {title}\n\n" + table(("tag", "", f"number{each}", ""), rows))
    if len(recipe.raw_tags) > 1 and not any(i.minimum for i in recipe.inputs if i.group == "raw"):
        parts.append(f"At least one of {', '.join(f'`{tag}`' for tag in recipe.raw_tags)} is needed.\n")
    products = ((f"`{p.file_name(ifu=1)}`", _when(p), TAGS[p.tag]) for p in recipe.products)
    parts.append("## Products\n\n" + table(("file", "if", ""), products))
    if any(p.per_ifu for p in recipe.products):
        parts.append("The number at the end is that of the IFU.\n")
    if recipe.parameters:
        parts.append("## Parameters\n\n" + parameter_table(recipe.parameters))
    if any(p.expert for p in recipe.parameters):
        parts.append(f"{EXPERT} for experts; the help of esorex does not show them.\n")
    return "\n".join(parts)


def parameter_table(parameters: Sequence[Parameter]) -> str:
    """Table of parameters, in Markdown."""
    rows = ((f"`{p.name}`{f' {EXPERT}' * p.expert}", _default(p), _values(p), p.help) for p in parameters)
    return table(("parameter", "default", "values", "meaning"), rows)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [f"| {' | '.join(head)} |".replace("|  |", "| |"), "|" + "---|" * len(head)]
    lines += ("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
    return "\n".join(lines).replace("|  |", "| |") + "\n"


def _kind(i: Input) -> str:
    return "raw" if i.group == "raw" else "calibration" if i.minimum else "optional"


def _what(i: Input) -> str:
    return TAGS[i.tag] + ("" if i.listed else " The help of esorex does not name it.")


def _when(product: Product) -> str:
    parts = []
    for alternatives in product.conditions():
        texts = [
            name if values is None else f"`{name}`" + (f" is {' or '.join(values)}" if values else "")
            for name, values in alternatives
        ]
        parts.append(texts[0] if len(texts) == 1 else f"({' or '.join(texts)})")
    return " and ".join(parts)


def _default(p: Parameter) -> str:
    text = p.to_card(p.default)
    return f"`{text}`" if text else "empty"


def _values(p: Parameter) -> str:
    return ", ".join(f"`{c}`" for c in p.choices) if p.choices else p.values_text()
