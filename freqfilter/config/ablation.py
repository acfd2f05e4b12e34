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
    """Default name of a run: its recipe, and the given values outside the section ``tracking``.

    >>> default_run_name("default", {"frequencies_hz": "[2, 5]", "epochs": 3, "register": False})
    'default frequencies_hz=[2,5] epochs=3'
    """
    values = {name: value for name, value in given.items() if name not in TrackingParams.model_fields}
    # Without spaces in lists, so that spaces separate the parts.
    parts = [f"{name}={re.sub(', +', ',', str(value).strip())}" for name, value in values.items()]
    return textwrap.shorten(" ".join([Path(recipe).stem, *parts]), MAX_NAME_LENGTH, placeholder=" …")


def seed_variants(seeds: str, given: Mapping[str, Any], *, recipe: str, folder: Path) -> dict[str, Params]:
    """Resolve the same parameters with each seed of a list, YAML text such as ``[1, 2, 3]``; see ``ablation_variants``.

    Returns:
        Parameters by name, such as ``seed=1``.

    Raises:
        UserError: If ``seeds`` is not a list of different seeds, or a value is invalid.
    """
    if "seed" in given:
        raise UserError("seed and seeds exclude each other; give one")
    listed = parse_yaml(seeds)
    if not isinstance(listed, list) or not listed:
        raise UserError(f"seeds={seeds}: not a list of seeds; write one such as [1, 2, 3]")
    return _check_distinct(
        [(f"seed={seed}", resolve({**given, "seed": seed}, recipe=recipe, folder=folder)) for seed in listed]
    )


def ablation_variants(values: str, given: Mapping[str, Any], *, recipe: str, folder: Path) -> dict[str, Params]:
    """Resolve the base parameters, and variants with one parameter changed each.

    Args:
        values: YAML text such as ``{hidden_size: [64, 256], cell: gru}``; a value that is itself a list is written
            inside a list.
        given: Shared values by name.
        recipe: Source of the other values.
        folder: Base of relative paths.

    Returns:
        Parameters by name: ``base``, then names such as ``hidden_size=64``.

    Raises:
        UserError: If ``values`` is not a mapping of names to values, two variants are equal, or a value is invalid.
    """
    mapping = parse_yaml(values)
    if not isinstance(mapping, dict) or not mapping:
        example = "{hidden_size: [64, 256], cell: gru}"
        raise UserError(f"values={values}: not a mapping with values to try; write one such as {example}")
    variants = [(BASE, resolve(given, recipe=recipe, folder=folder))]
    for name, choices in mapping.items():
        for value in choices if isinstance(choices, list) else [choices]:
            shown = value if isinstance(value, str) else json.dumps(value).replace('"', "")
            variants.append((f"{name}={shown}", resolve({**given, name: value}, recipe=recipe, folder=folder)))
    return _check_distinct(variants)


def _check_distinct(variants: list[tuple[str, Params]]) -> dict[str, Params]:
    seen: dict[str, str] = {}
    for name, params in variants:
        if (same := seen.setdefault(params.digest(), name)) != name or [n for n, _ in variants].count(name) > 1:
            raise UserError(f"{name} and {same} are the same parameters; remove one")
    return dict(variants)
