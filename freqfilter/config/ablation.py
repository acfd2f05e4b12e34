"""Variants of a configuration: several seeds, or one parameter changed at a time."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from freqfilter.config.load import parse_yaml, resolve
from freqfilter.config.schema import Params, TrackingParams
from freqfilter.errors import UserError

BASE = "base"
MAX_NAME_LENGTH = 100  # characters of a run's name; the UI truncates longer ones


def default_run_name(recipe: str, given: Mapping[str, Any]) -> str:
    """The name of a run: its recipe, and the given values that can change a number.

    >>> default_run_name("default", {"frequencies_hz": "[2, 5]", "epochs": 3, "register": False})
    'default frequencies_hz=[2,5] epochs=3'
    """
    values = {name: value for name, value in given.items() if name not in TrackingParams.model_fields}
    # Words are separated by spaces, so a list has none.
    words = [f"{name}={re.sub(', +', ',', str(value).strip())}" for name, value in values.items()]
    return textwrap.shorten(" ".join([Path(recipe).stem, *words]), MAX_NAME_LENGTH, placeholder=" …")


def seed_variants(seeds: str, given: Mapping[str, Any], *, recipe: str, folder: Path) -> dict[str, Params]:
    """The same parameters with each seed of a list.

    Args:
        seeds: YAML text such as ``[1, 2, 3]``.
        given: Values by name that all of them share.
        recipe: Where the other values come from.
        folder: What relative paths refer to.

    Returns:
        Parameters by name, such as ``seed=1``.

    Raises:
        UserError: If that is no list of different seeds, or a value is not allowed.
    """
    if "seed" in given:
        raise UserError("seed and seeds: both say where training starts; give one")
    listed = parse_yaml(seeds)
    if not isinstance(listed, list) or not listed:
        raise UserError(f"seeds={seeds}: a list of seeds is needed, such as [1, 2, 3]")
    return _check_distinct(
        [(f"seed={seed}", resolve({**given, "seed": seed}, recipe=recipe, folder=folder)) for seed in listed]
    )


def ablation_variants(values: str, given: Mapping[str, Any], *, recipe: str, folder: Path) -> dict[str, Params]:
    """The parameters as they are, and once more for each value that takes the place of one of them.

    Args:
        values: YAML text such as ``{hidden_size: [64, 256], cell: gru}``; a value that is a list itself stands in
            a list.
        given: Values by name that all of them share.
        recipe: Where the other values come from.
        folder: What relative paths refer to.

    Returns:
        Parameters by name: ``base``, then such as ``hidden_size=64``.

    Raises:
        UserError: If that is no mapping of names to values, two variants are the same, or a value is not allowed.
    """
    mapping = parse_yaml(values)
    if not isinstance(mapping, dict) or not mapping:
        raise UserError(f"values={values}: a mapping is needed, such as {{hidden_size: [64, 256], cell: gru}}")
    variants = [(BASE, resolve(given, recipe=recipe, folder=folder))]
    for name, of_name in mapping.items():
        for value in of_name if isinstance(of_name, list) else [of_name]:
            shown = value if isinstance(value, str) else json.dumps(value).replace('"', "")
            variants.append((f"{name}={shown}", resolve({**given, name: value}, recipe=recipe, folder=folder)))
    return _check_distinct(variants)


def _check_distinct(variants: list[tuple[str, Params]]) -> dict[str, Params]:
    seen: dict[str, str] = {}
    for name, params in variants:
        if (same := seen.setdefault(params.digest(), name)) != name or [n for n, _ in variants].count(name) > 1:
            raise UserError(f"{name} and {same} are the same parameters: leave one out")
    return dict(variants)
