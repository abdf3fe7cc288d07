"""Dead code: nodes and constants that no output depends on."""

from __future__ import annotations

from convwright.graph.rewrites.editor import Editor


def remove_dead(editor: Editor) -> bool:
    """Remove what no output depends on; inputs stay, read or not."""
    graph = editor.graph
    needed = set(graph.outputs)
    kept = []
    for node in reversed(graph.nodes):
        if any(name in needed for name in node.outputs):
            needed.update(node.inputs)
            kept.append(node)
    changed = len(kept) < len(graph.nodes)
    if changed:
        editor.keep_only(kept[::-1])
    if any(name not in needed for name in graph.constants):
        graph.constants = {name: array for name, array in graph.constants.items() if name in needed}
    return changed
