"""What there is to explore, by name: the machines of both families, and the defects of both."""

from __future__ import annotations

from pmuvisor.check import defects, models
from pmuvisor.check.defects import Defect
from pmuvisor.check.model import Model
from pmuvisor.check.spe import defects as spe_defects
from pmuvisor.check.spe import models as spe_models

ALL = (*defects.ALL, *spe_defects.ALL)
"""All defects that are known, in the order of the reviews."""
PRESETS = (*models.PRESETS, *spe_models.PRESETS)
"""The names of all presets."""


def default_preset(design: str | None) -> str:
    """Return the preset that a design, or none in particular, is explored with unless another is asked for."""
    return next(name for name in PRESETS if design is None or fits(name, design))


def default_design(preset: str) -> str:
    """Return the design that a preset is explored with unless another is asked for."""
    return spe_models.DESIGN if preset in spe_models.PRESETS else next(iter(models.DESIGNS))


def fits(preset: str, design: str) -> bool:
    """Tell whether a preset's machine can be of a design."""
    if preset in spe_models.PRESETS:
        return design == spe_models.DESIGN
    return design in models.DESIGNS


def named(preset: str, design: str) -> Model:
    """Return the model of a preset's machine, of a design that it fits."""
    if preset in spe_models.PRESETS:
        return spe_models.model(spe_models.PRESETS[preset])
    return models.model(models.PRESETS[preset], design)


def defect(name: str) -> Defect:
    """Return the defect of a name."""
    return next(each for each in ALL if each.name == name)
