"""What users hold and pass (weights, routing, activations, saved values, gradients), and the
checked arguments of a call, which are made of it.
"""
