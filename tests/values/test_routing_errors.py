"""Bad arguments of routing: a ValueError or TypeError with one sentence, and nothing is changed."""

import numpy as np
import pytest

import ffncore as fc

Z = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
IDS = np.zeros((3, 2), np.int32)
ONES = np.ones((3, 2), np.float32)
BIAS = np.zeros(8, np.float32)


def route(z=Z, top_k=2, **options):
    return lambda: fc.route(z, top_k, **options)


def routing(experts=IDS, weights=ONES, **options):
    return lambda: fc.Routing(experts=experts, weights=weights, **options)


def backward(grad=ONES, made=None):
    return lambda: fc.route_backward(grad, fc.route(Z, 2) if made is None else made)


TYPES = [
    (route([[1.0]]), "logits is of type list; expected a numpy array"),
    (route(Z.astype(np.float16)), "logits has dtype float16; expected float32 or float64"),
    (route(Z.astype(int)), "logits has dtype int64; expected float32 or float64"),
    (route(top_k=2.0), "top_k is of type float; expected an integer"),
    (route(top_k=True), "top_k is of type bool; expected an integer"),
    (route(score_fn=None), "score_fn is of type NoneType; expected a name"),
    (route(norm_topk_prob=1), "norm_topk_prob is of type int; expected a bool"),
    (route(norm_eps="0"), "norm_eps is of type str; expected a number"),
    (route(routed_scaling_factor=None),
     "routed_scaling_factor is of type NoneType; expected a number"),
    (route(n_group=1.0), "n_group is of type float; expected an integer"),
    (route(group_score=["max"]), "group_score is of type list; expected a name"),
    (route(e_score_correction_bias=[0] * 8),
     "e_score_correction_bias is of type list; expected a numpy array"),
    (route(e_score_correction_bias=np.zeros(8)),
     "e_score_correction_bias has dtype float64; expected float32 to match logits"),
    (route(experts=ONES), "experts has dtype float32; expected an integer dtype"),
    (routing(experts=IDS.astype(bool)), "experts has dtype bool; expected an integer dtype"),
    (routing(weights=IDS), "weights has dtype int32; expected float32 or float64"),
    (routing(weights=ONES.astype(np.float16)),
     "weights has dtype float16; expected float32 or float64"),
    (routing(n_experts=8.0), "n_experts is of type float; expected an integer"),
    (backward(made=ONES), "routing is of type ndarray; expected a Routing"),
    (backward(grad=np.ones((3, 2))),
     "grad_weights has dtype float64; expected float32 to match routing.weights"),
]  # fmt: skip

VALUES = [
    (route(Z[0, 0, ...]), "logits has shape (); expected [..., E]"),
    (route(Z[:, :0]), "logits has shape (3, 0); expected from 1 to 2147483647 experts"),
    (route(top_k=0), "top_k is 0; expected at least 1"),
    (route(top_k=9), "top_k is 9; expected 1 to 8, the number of experts"),
    (route(top_k=5, n_group=4, topk_group=2),
     "top_k is 5; expected 1 to 4, the number of experts in 2 of 4 groups"),
    (route(score_fn="sigmoids"),
     "score_fn 'sigmoids' is not known; the nearest known name is 'sigmoid'"),
    (route(select_on="logit"),
     "select_on 'logit' is not known; the nearest known name is 'logits'"),
    (route(norm_eps=-1e-20), "norm_eps is -1e-20; expected a number not below 0"),
    (route(norm_min=np.nan), "norm_min is nan; expected a finite number"),
    (route(norm_eps=1e-50),
     "norm_eps is 1e-50, which is too small for float32; "
     "expected a number that float32 can compute with"),
    (route(routed_scaling_factor=1e39),
     "routed_scaling_factor is 1e+39, which is too large for float32; "
     "expected a number that float32 can compute with"),
    (route(routed_scaling_factor=np.inf),
     "routed_scaling_factor is inf; expected a finite number"),
    (route(n_group=3), "n_group is 3; expected a divisor of the 8 experts"),
    (route(n_group=0), "n_group is 0; expected a divisor of the 8 experts"),
    (route(n_group=2, topk_group=3), "topk_group is 3; expected 1 to 2, which is n_group"),
    (route(topk_group=0), "topk_group is 0; expected 1 to 1, which is n_group"),
    (route(n_group=8, topk_group=4),
     "n_group is 8, which makes groups of one expert; expected at least two experts in a group for "
     "group_score 'top2_sum'"),
    (route(n_group=2, group_score="top2"),
     "group_score 'top2' is not known; the nearest known name is 'top2_sum'"),
    (route(n_group=2, group_mask_value=-1.0), "group_mask_value is -1.0; expected -inf or 0"),
    (route(e_score_correction_bias=BIAS[:7]),
     "e_score_correction_bias has shape (7,); expected (8,) to match logits (3, 8)"),
    # Options that have no effect together with the others.
    (route(norm_topk_prob=False, norm_eps=1e-20),
     "norm_eps is 1e-20 with norm_topk_prob=False; expected 0"),
    (route(norm_topk_prob=False, norm_min=0.5),
     "norm_min is 0.5 with norm_topk_prob=False; expected 0"),
    (route(score_fn="softmax_topk", norm_min=0.5),
     "norm_min is 0.5, which softmax_topk does not use; expected 0"),
    (route(score_fn="softmax_topk", norm_topk_prob=False),
     "norm_topk_prob is False, but softmax_topk always normalizes the weights; expected True"),
    (route(group_score="max"), "group_score is 'max', but n_group is 1; expected it with groups"),
    (route(group_mask_value=0), "group_mask_value is 0, but n_group is 1; expected it with groups"),
    (route(experts=IDS, select_on="logits"),
     "select_on and experts are both given; expected only one of them"),
    (route(experts=IDS, e_score_correction_bias=BIAS),
     "e_score_correction_bias and experts are both given; expected only one of them"),
    (route(experts=IDS, n_group=2),
     "n_group and experts are both given; expected only one of them"),
    # The argument experts.
    (route(experts=IDS[:2]),
     "experts has shape (2, 2); expected (3, 2) to match logits (3, 8)"),
    (route(experts=IDS, top_k=3),
     "experts has shape (3, 2); expected (3, 3) to match logits (3, 8)"),
    (route(experts=IDS + 8), "experts has an entry 8; expected -1 to 7, of 8 experts"),
    (route(experts=IDS - 2), "experts has an entry -2; expected -1 to 7, of 8 experts"),
    (routing(experts=IDS[:2]), "weights has shape (3, 2); expected (2, 2) to match experts"),
    (routing(experts=IDS[0, 0, ...]),
     "experts has shape (); expected [..., k] with k at least 1"),
    (routing(experts=IDS + 5, n_experts=5),
     "experts has an entry 5; expected -1 to 4, of 5 experts"),
    (routing(experts=IDS.astype(np.uint64) + np.uint64(2**63)),
     "experts has an entry 9223372036854775808; expected -1 to 2147483646"),
    (routing(n_experts=0), "n_experts is 0; expected 1 to 2147483647"),
    (lambda: fc.Routing(experts=IDS, weights=ONES).counts,
     "routing.n_experts is None; expected the number of experts"),
    (backward(grad=ONES[:2]),
     "grad_weights has shape (2, 2); expected (3, 2) to match routing.weights"),
    (backward(made=fc.Routing(experts=IDS, weights=ONES)),
     "routing was made from experts and weights; expected a routing that fc.route or another "
     "router made from logits"),
]  # fmt: skip

CASES = [(call, TypeError, sentence) for call, sentence in TYPES]
CASES += [(call, ValueError, sentence) for call, sentence in VALUES]


@pytest.mark.parametrize("call, error, sentence", CASES, ids=[case[2][:50] for case in CASES])
def test_bad_input(call, error, sentence):
    before = [a.copy() for a in (Z, IDS, ONES, BIAS)]
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == sentence
    for array, copy in zip((Z, IDS, ONES, BIAS), before, strict=True):
        np.testing.assert_array_equal(array, copy)
