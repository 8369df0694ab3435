"""Mutations of JSON, YAML, TOML and tables: other values, keys and shapes of a valid text."""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from fuzzing.edit import Edit, Rng, edits_of_bytes, ends_in

_HUGE = (10**6, 10**9, 10**12, 2**63, 10**30, 10**400)
_ODD = (0, -1, 1, 2, 7, 3.5, 1e308, -1e308, 1e-320, float("nan"), float("inf"), -float("inf"))
_TEXTS = ("", "x", "NaN", "../../etc/passwd", "a\nb", "\x1b[31m", "\ud800", "é" * 50, "k" * 100_000)
_CONTAINERS: tuple[Any, ...] = ([], {}, [[]], [{}], {"": None}, [0] * 1000, {"a": {"b": {"c": 1}}})
Tree = Any
Place = tuple[Any, Any]  # a container and a key in it


def other_value(tree: Tree, rng: Rng) -> Tree:
    container, key = _place(tree, rng)
    kinds: tuple[tuple[Any, ...], ...] = (_HUGE, _ODD, _TEXTS, _CONTAINERS, (None, True, False))
    container[key] = rng.choice(rng.choice(kinds))
    return tree


def near_value(tree: Tree, rng: Rng) -> Tree:
    """A number becomes a neighbour, a text loses its end, a list its last entry."""
    container, key = _place(tree, rng)
    value = container[key]
    if isinstance(value, bool):
        container[key] = not value
    elif isinstance(value, int | float):
        container[key] = rng.choice(
            (value + 1, value - 1, -value, value * 2, float(value), value / 3)
        )
    elif isinstance(value, str | list):
        container[key] = rng.choice((value[:-1], value + value, value[:1]))
    return tree


def lose_key(tree: Tree, rng: Rng) -> Tree:
    container, key = _place(tree, rng)
    del container[key]
    return tree


def unknown_key(tree: Tree, rng: Rng) -> Tree:
    container, _ = _place(tree, rng)
    if isinstance(container, dict):
        container[rng.choice(_TEXTS)] = rng.choice(_ODD)
    else:
        container.append(rng.choice(_ODD))
    return tree


def rename_key(tree: Tree, rng: Rng) -> Tree:
    container, key = _place(tree, rng)
    if isinstance(container, dict):
        container[rng.choice((*_TEXTS, f"{key}_", str(key).upper()))] = container.pop(key)
    return tree


def swap_values(tree: Tree, rng: Rng) -> Tree:
    (one, at), (other, to) = _place(tree, rng), _place(tree, rng)
    copies = json.loads(json.dumps([one[at], other[to]]))
    one[at], other[to] = copies[1], copies[0]
    return tree


def nest_deep(tree: Tree, rng: Rng) -> Tree:
    """Within what the writer can still write."""
    container, key = _place(tree, rng)
    deep: Any = container[key]
    for _ in range(rng.choice((3, 50, 300))):
        deep = rng.choice(([deep], {"a": deep}))
    container[key] = deep
    return tree


def many_entries(tree: Tree, rng: Rng) -> Tree:
    """A list holds its first entry many times over."""
    lists = [(c, k) for c, k in _places(tree) if isinstance(c[k], list) and c[k]]
    if lists:
        container, key = rng.choice(lists)
        container[key] = container[key][:1] * rng.choice((100, 500, 20_000))
    return tree


def _places(tree: Tree) -> Iterator[Place]:
    items: Any = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in list(items):
        yield tree, key
        if isinstance(value, dict | list) and value:
            yield from _places(value)


def _place(tree: Tree, rng: Rng) -> Place:
    """Those near the root are met as often as all others."""
    all_places = list(_places(tree))
    shallow = [(container, key) for container, key in all_places if container is tree]
    return rng.choice(rng.choice((shallow, all_places, all_places)))


def _as_json(change: Callable[[Tree, Rng], Tree]) -> Callable[[Path, Rng], None]:
    def on_file(path: Path, rng: Rng) -> None:
        read = yaml.safe_load if path.suffix == ".yaml" else json.loads
        try:
            tree = read(path.read_text())
            changed = change(tree, rng)
            text = yaml.dump(changed) if path.suffix == ".yaml" else json.dumps(changed)
        except (ValueError, TypeError, LookupError, AttributeError, yaml.YAMLError, RecursionError):
            return  # an earlier mutation has left no tree here
        path.write_bytes(text.encode("utf-8", "surrogatepass"))

    return on_file


def deep_text(content: bytes, rng: Rng) -> bytes:
    """A value of a JSON text is nested deeper than a reader of its own stack can go."""
    at = content.find(b":", rng.randrange(max(1, len(content))))
    depth = rng.choice((1_000, 100_000))
    opened, closed = rng.choice(((b"[", b"]"), (b'{"a":', b"}")))
    return content[: at + 1] + opened * depth + b"1" + closed * depth + content[at + 2 :]


def double_key(content: bytes, rng: Rng) -> bytes:
    """The first key of an object comes once more, with another value."""
    match = re.search(rb'"[^"]{1,50}"\s*:', content)
    return (
        content
        if match is None
        else content[: match.start()] + match[0] + b" 3, " + content[match.start() :]
    )


def other_number(content: bytes, rng: Rng) -> bytes:
    """Of a table, a recipe or a program in text."""
    found = list(re.finditer(rb"(?<![\w.])-?\d+(\.\d+)?", content))
    if not found:
        return content
    match = rng.choice(found)
    new = rng.choice((*_HUGE[:5], *_ODD, "x", "", "[]", "true"))
    return content[: match.start()] + str(new).encode() + content[match.end() :]


def other_line(content: bytes, rng: Rng) -> bytes:
    """Lines lost, doubled, turned round or very long."""
    lines = content.split(b"\n")
    at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    lines[at] = rng.choice((b"", lines[at] * 2, lines[at][::-1], lines[other], b"y" * 1_000_000))
    return b"\n".join(lines)


def other_cell(content: bytes, rng: Rng) -> bytes:
    try:
        rows = list(csv.reader(io.StringIO(content.decode())))
        row = rng.choice(rows)
        row[rng.randrange(len(row))] = str(rng.choice((*_HUGE, *_ODD, *_TEXTS[:6])))
    except (UnicodeDecodeError, csv.Error, LookupError, ValueError):
        return content
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerows(rows)
    return written.getvalue().encode("utf-8", "surrogatepass")


_TREES = (
    other_value,
    near_value,
    lose_key,
    unknown_key,
    rename_key,
    swap_values,
    nest_deep,
    many_entries,
)
EDITS = {
    **{change.__name__: Edit(_as_json(change), ends_in(".json", ".yaml")) for change in _TREES},
    **edits_of_bytes(ends_in(".json"), deep_text, double_key),
    **edits_of_bytes(ends_in(".csv", ".toml", ".txt", ".yaml"), other_number, other_line),
    **edits_of_bytes(ends_in(".csv"), other_cell),
}
