"""Shape rules: one function an operator family, from the inputs' concrete types to the outputs'."""

from __future__ import annotations

from .elementwise import RULES as _ELEMENTWISE
from .movement import RULES as _MOVEMENT
from .products import RULES as _PRODUCTS
from .reductions import RULES as _REDUCTIONS
from .scope import Rule, Scope
from .windows import RULES as _WINDOWS

RULES: dict[str, Rule] = _ELEMENTWISE | _MOVEMENT | _PRODUCTS | _REDUCTIONS | _WINDOWS

__all__ = ["RULES", "Rule", "Scope"]
