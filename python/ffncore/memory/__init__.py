"""fc.memory: the layer as a key-value memory, y = sum over i of m_i v_i.

m_i = act(k_i . x), or act(g_i . x)(u_i . x), is the coefficient of neuron i, whose key is a row of
up (with a gate, a pair of rows), and whose value v_i is a column of down.

Reading
    top_neurons       the neurons of each token that count most; TopNeurons
    readout           the sum of their values
    attribute         y . u as a sum over neurons; Attribution
    statistics        what outputs and values say in terms of words; Statistics
    trigger_examples  the inputs that fire a neuron most; Triggers

Moments, edits, pruning
    SecondMoment      the sum of h h^T over a stream of inputs
    edit              new values for keys, with a report of what else moves; Edit, Ripple, SideCar
    neuron_scores     one number for each neuron
    prune             a layer with fewer neurons; Pruned
"""

from ..passes.hidden import SideCar
from .editing import Edit, Ripple, edit
from .moments import SecondMoment
from .pruning import Pruned, neuron_scores, prune
from .reading import Attribution, TopNeurons, attribute, readout, top_neurons
from .triggers import Triggers, trigger_examples
from .words import Statistics, statistics

__all__ = [
    "Attribution",
    "Edit",
    "Pruned",
    "Ripple",
    "SecondMoment",
    "SideCar",
    "Statistics",
    "TopNeurons",
    "Triggers",
    "attribute",
    "edit",
    "neuron_scores",
    "prune",
    "readout",
    "statistics",
    "top_neurons",
    "trigger_examples",
]
