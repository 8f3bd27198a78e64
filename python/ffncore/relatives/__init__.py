"""Relatives of the feed-forward layer, in numpy.

attention.py  fc.persistent_attention: one softmax over context and trained memory
lambdas.py    fc.positional_lambda: values of the input, mixed by constant embeddings
"""
