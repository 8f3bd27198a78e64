"""The objects that users create and pass on (weights, activations, routings, saved activations,
gradients), and the checked arguments of a call, which are built from them.
"""
