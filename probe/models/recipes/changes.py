"""Recipes with some of their settings changed by `key=value`."""

import json
import tomllib
from collections.abc import Sequence
from typing import Any

from probe.errors import InputError
from probe.models.recipes import Recipe


def changed(recipe: Recipe, assignments: Sequence[str]) -> Recipe:
    """The recipe with some values replaced.

    Args:
        recipe: The recipe to start from.
        assignments: Each `key=value`. The key is a path through the recipe, such as
            `optimiser.steps` or `model.blocks.0.attention.heads`; the value is TOML, or else taken
            as a text.

    Raises:
        InputError: No such key, or values that do not fit.
    """
    plain = json.loads(json.dumps(recipe.to_dict()))  # lists, so that entries can be replaced
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise InputError(f"--set {assignment}: expected key=value")
        try:
            _replace(plain, key.strip().split("."), _value(text.strip()))
        except InputError as error:
            raise InputError(f"--set {assignment}: {error}") from None
    try:
        return Recipe.from_dict(recipe.name, plain)
    except InputError as error:
        raise InputError(f"--set {' '.join(assignments)}: {error}") from None


def _replace(plain: Any, keys: Sequence[str], value: Any) -> None:
    """Puts the value at the end of a path of keys, all of which must be there."""
    *path, last = keys
    for key in path:
        plain = plain[_known(plain, key)]
    plain[_known(plain, last)] = value


def _known(plain: Any, key: str) -> Any:
    """The key as the table or list takes it."""
    if isinstance(plain, dict):
        places = {name: name for name in plain}
    elif isinstance(plain, list):
        places = {str(index): index for index in range(len(plain))}
    else:
        raise InputError(f"nothing lies below {plain!r:.40}, not {key}")
    if key not in places:
        raise InputError(f"unknown key {key}; known: {', '.join(places)}")
    return places[key]


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
