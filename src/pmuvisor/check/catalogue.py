"""What there is to explore, by name: the machines of both families, and the defects of both."""

from __future__ import annotations

from collections.abc import Mapping

from pmuvisor.check import defects, models
from pmuvisor.check.defects import Defect
from pmuvisor.check.model import Model
from pmuvisor.check.models import PresetError
from pmuvisor.check.spe import defects as spe_defects
from pmuvisor.check.spe import models as spe_models
from pmuvisor.own import OwnDesign

__all__ = ["ALL", "PRESETS", "DesignError", "PresetError", "default_preset", "defect", "fits", "named"]

ALL = (*defects.ALL, *spe_defects.ALL)
"""All defects that are known, in the order of the reviews."""
PRESETS = (*models.PRESETS, *spe_models.PRESETS)
"""The names of all presets."""


class DesignError(ValueError):
    """A design that a preset's machine cannot be of."""


def default_preset(design: str | None) -> str:
    """Return the preset that a design, or none in particular, is explored with unless another is asked for."""
    return next(iter(spe_models.PRESETS if design == spe_models.DESIGN else models.PRESETS))


def fits(preset: str, design: str) -> bool:
    """Tell whether a preset's machine can be of one of our designs."""
    if preset in spe_models.PRESETS:
        return design == spe_models.DESIGN
    return design in models.DESIGNS


def named(
    preset: str, design: str | None = None, changes: Mapping[str, str] | None = None, own: OwnDesign | None = None
) -> Model:
    """Return the model of a preset's machine.

    It is of a design that is named, or of `own`, somebody's, or of the first that it can be of; `changes` are other
    sizes and budgets, by their names. Raises DesignError and PresetError.
    """
    if preset in spe_models.PRESETS:
        if design not in (None, spe_models.DESIGN):
            raise DesignError(f"{design}: expected one that preset {preset} can be of: {spe_models.DESIGN}")
        return spe_models.model(spe_models.adjusted(spe_models.PRESETS[preset], changes or {}))
    machine = models.adjusted(models.PRESETS[preset], changes or {})
    if own is not None and design in (None, own.name):
        return models.own_model(machine, own)
    if design is not None and design not in models.DESIGNS:
        raise DesignError(f"{design}: expected one that preset {preset} can be of: {', '.join(models.DESIGNS)}")
    return models.model(machine, design or next(iter(models.DESIGNS)))


def defect(name: str) -> Defect:
    """Return the defect of a name."""
    return next(each for each in ALL if each.name == name)
