"""Rewrites: graph -> equal graph that is easier to run. One file each; `simplify` runs them all.

A rewrite is a function of an `Editor`; it returns whether it changed anything. Where several nodes become one, the last
of them turns into the new node in place (its inputs stand before it in the order), and dead-code removal clears the
others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from convwright.graph.graph import Graph
from convwright.graph.rewrites.activations import name_activations
from convwright.graph.rewrites.batch_norm import fold_affine
from convwright.graph.rewrites.channel_shuffle import name_channel_shuffles
from convwright.graph.rewrites.clip import constant_clips
from convwright.graph.rewrites.dead import remove_dead
from convwright.graph.rewrites.editor import Editor
from convwright.graph.rewrites.fold import fold_constants
from convwright.graph.rewrites.gemm import normalise_products
from convwright.graph.rewrites.global_pool import name_global_pools
from convwright.graph.rewrites.identity import remove_identities
from convwright.graph.rewrites.pad import fold_pads
from convwright.graph.rewrites.reshape import name_flattens
from convwright.graph.rewrites.side_by_side import activate_parts, group_equal_parts
from convwright.graph.shapes import concrete_inputs

Rewrite = Callable[[Editor], bool]

REWRITES: tuple[Rewrite, ...] = (
    fold_constants,
    remove_identities,
    constant_clips,
    name_channel_shuffles,
    name_flattens,
    name_global_pools,
    name_activations,
    fold_pads,
    normalise_products,
    group_equal_parts,
    fold_affine,
    activate_parts,
    remove_dead,
)

_ROUNDS = 8


def fixed(graph: Graph, shapes: Mapping[str, Iterable[int]]) -> Graph:
    """A copy of the graph whose inputs have these shapes."""
    copy = graph.copy()
    copy.inputs = concrete_inputs(graph, shapes)
    return copy


def simplify(graph: Graph, shapes: Mapping[str, Iterable[int]] | None = None) -> Graph:
    """An equal graph in the form that kernels are written for; the given one is left as it is, arrays are shared.

    - `shapes`: of the inputs, by name, where the result has to serve these alone: arithmetic on shapes is then folded.

    Names of inputs and outputs stay. Results agree to rounding: weights that take a scale in are computed in float64
    and rounded once.
    """
    editor = Editor(fixed(graph, shapes) if shapes else graph.copy())
    remove_dead(editor)
    # Weights may hold infinities; what they fold to is then no news.
    with np.errstate(all="ignore"):
        for _ in range(_ROUNDS):
            changes = [rewrite(editor) for rewrite in REWRITES]
            if not any(changes):
                break
    return editor.graph


__all__ = ["REWRITES", "Editor", "Rewrite", "simplify"]
