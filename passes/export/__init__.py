"""Passes that spell the moec dialect in operators that other programs run, one operator to a pass.

``use-*`` passes write an operator of onnxruntime's where its kernel on a CPU computes the same, and leave the node with
a remark elsewhere. ``dispatch-experts`` and ``expand-*`` passes spell in ONNX whatever is left.
"""
