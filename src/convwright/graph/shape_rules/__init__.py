"""Shape rules: one function an operator family, from the inputs' concrete types to the outputs'."""

from __future__ import annotations

from convwright.graph.shape_rules.elementwise import RULES as _ELEMENTWISE
from convwright.graph.shape_rules.movement import RULES as _MOVEMENT
from convwright.graph.shape_rules.products import RULES as _PRODUCTS
from convwright.graph.shape_rules.reductions import RULES as _REDUCTIONS
from convwright.graph.shape_rules.scope import Rule, Scope
from convwright.graph.shape_rules.windows import RULES as _WINDOWS

RULES: dict[str, Rule] = _ELEMENTWISE | _MOVEMENT | _PRODUCTS | _REDUCTIONS | _WINDOWS

__all__ = ["RULES", "Rule", "Scope"]
