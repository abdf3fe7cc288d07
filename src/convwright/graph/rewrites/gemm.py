"""Matrix products by constants -> Gemm(x, weights [K, C], bias [K]) with transB=1 and nothing else set."""

from __future__ import annotations

import numpy as np

from convwright.graph.graph import Node
from convwright.graph.rewrites.editor import Array, Editor

_NORMAL = {"transB": 1}


def normalise_products(editor: Editor) -> bool:
    """MatMul of a matrix by a constant, and every Gemm by a constant, become the one form.

    A bias that follows is folded with the other affine operators.
    """
    changed = False
    for node in list(editor.graph.nodes):
        if node.domain:
            continue
        if node.op == "MatMul":
            changed |= _matmul(editor, node)
        elif node.op == "Gemm":
            changed |= _gemm(editor, node)
    return changed


def _matmul(editor: Editor, node: Node) -> bool:
    weights = editor.constant(node.inputs[1])
    if weights is None or weights.ndim != 2 or weights.dtype.kind != "f" or editor.rank(node.inputs[0]) != 2:
        return False
    name = editor.add_constant(f"{node.inputs[1]}_transposed", np.ascontiguousarray(weights.T))
    editor.change(node, op="Gemm", inputs=[node.inputs[0], name], attributes=dict(_NORMAL))
    return True


def _gemm(editor: Editor, node: Node) -> bool:
    weights = editor.constant(node.inputs[1])
    if weights is None or weights.ndim != 2 or weights.dtype.kind != "f":
        return False
    bias = editor.constant(node.input(2))
    columns = weights.shape[0] if node.get("transB", 0) else weights.shape[1]
    plain_bias = not node.input(2) or (bias is not None and bias.shape == (columns,))
    if node.attributes == _NORMAL and plain_bias and len(node.inputs) == (3 if node.input(2) else 2):
        return False
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    inputs = [node.inputs[0], node.inputs[1]]
    if not node.get("transB", 0):
        weights = np.ascontiguousarray(weights.T)
    if alpha != 1.0:
        weights = (weights.astype(np.float64) * alpha).astype(weights.dtype)
    if alpha != 1.0 or not node.get("transB", 0):
        inputs[1] = editor.add_constant(f"{node.inputs[1]}_transposed", weights)
    if node.get("transA", 0):
        turned = editor.fresh(f"{node.inputs[0]}_transposed")
        shapes = editor.shapes(node.inputs[0])
        if shapes is not None:
            editor.facts.note(turned, node.inputs[0], tuple(shape[::-1] for shape in shapes))
        editor.insert_before(node, Node("Transpose", [node.inputs[0]], [turned], {"perm": (1, 0)}))
        inputs[0] = turned
    result, shapes = node.outputs[0], editor.shapes(node.outputs[0])
    addend = ""
    if node.input(2) and beta != 0.0:
        row = None if bias is None else _row(editor, node, bias, columns, beta)
        if row is not None:
            inputs.append(row)
        elif beta == 1.0:
            addend = node.inputs[2]
        else:
            addend = editor.fresh(f"{result}_scaled")
            bias_shapes = editor.shapes(node.inputs[2])
            if bias_shapes is not None:
                editor.facts.note(addend, node.inputs[2], bias_shapes)
            factor = editor.add_constant(f"{result}_beta", np.array(beta, weights.dtype))
            editor.insert_before(node, Node("Mul", [node.inputs[2], factor], [addend]))
    if not addend:
        editor.change(node, inputs=inputs, attributes=dict(_NORMAL))
        return True
    product = editor.fresh(f"{result}_product")
    if shapes is not None:
        editor.facts.note(product, result, shapes)
    editor.insert_before(node, Node("Gemm", inputs, [product], dict(_NORMAL), node.name))
    node.name = ""
    editor.change(node, op="Add", inputs=[product, addend])
    return True


def _row(editor: Editor, node: Node, bias: Array, columns: int, beta: float) -> str | None:
    """The bias as a constant of shape [K], times beta; None where it is not a row."""
    if bias.size not in (1, columns) or bias.shape[:-1] not in ((), (1,)):
        return None
    if beta == 1.0 and bias.shape == (columns,):
        return node.inputs[2]
    row = np.broadcast_to(bias.reshape(-1), (columns,)).astype(np.float64) * beta
    return editor.add_constant(f"{node.outputs[0]}_bias", row.astype(bias.dtype))
