"""Compiled networks: ``compile`` makes a ``Model`` of a graph."""

from convwright.model.model import Model, compile

__all__ = ["Model", "compile"]
