"""Faults in what the op family's switches need of the CPU kernels."""

from tools.mutants.planted.fault import Fault

MEMORY = [
    Fault(
        "cpu-own-chunks-not-added",
        "Gradients of a bag's rows are those of its last chunk.",
        "(chunk ? load_part(to + c, columns) : Vec<Acc>{}) +",
        "",
    ),
    Fault(
        "cpu-bags-cut-by-the-batch",
        "Results of a bag depend on the other bags.",
        "const int64_t parts = smaller(most_units, count / chunk);",
        "const int64_t parts = smaller(most_units, count / (chunk + batch));",
    ),
    Fault(
        "cpu-shared-bag-without-its-last-chunks",
        "Of a bag that several units share, the last unit computes a chunk too few.",
        "body(Unit{bag, bag + 1, j, smaller(j + of_unit, parts)});",
        "body(Unit{bag, bag + 1, j, smaller(j + of_unit, parts) - (j + of_unit > parts)});",
    ),
]

TOKENIZE = [
    Fault(
        "cpu-own-chunks-not-merged",
        "Tokens of a bag lack its last chunk.",
        "own.merge(0, chunks, sample, row);",
        "own.merge(0, chunks - 1, sample, row);",
    ),
    Fault(
        "cpu-mass-of-removed-rows",
        "A removed row has an lse.",
        "bias.removed(row) ? 0 : seen",
        "seen",
    ),
    Fault(
        "cpu-gradient-of-a-removed-mass",
        "The gradient of a removed row's statistic reaches x.",
        "if (call.grad_stats.data && !zero) sum -= grad_lse(row);",
        "if (call.grad_stats.data) sum -= grad_lse(row);",
    ),
    Fault(
        "cpu-bias-gradient-of-each-chunk",
        "The gradient of a token bias counts once a tile.",
        "if (range.first == split.begin_of(sample) && !none)",
        "if (!none)",
    ),
    Fault(
        "cpu-values-gradient-of-masked-pixels",
        "Masked pixels of the second map get a gradient of NaN.",
        "if (valid) dvalues.clear_invalid(dvalues.target(range), range.count, valid);",
        "",
    ),
]

SOFTMAX = [
    Fault(
        "cpu-exp-left-out",
        'Weights of normalize="exp" are the logits.',
        "normalize == Normalize::exp && i < pixels;",
        "false && i < pixels;",
    ),
    Fault(
        "cpu-softmax-of-scores-of-minus-infinity",
        "A pixel whose scores are all minus infinity gets NaN.",
        "if (partial) softmax_over_rows<true>(weights, first + l, L, pixels); else",
        "",
    ),
    Fault(
        "cpu-backward-logits-as-exp",
        "normalize=None of tokenize is differentiated as exp.",
        "pools && normalize == Normalize::none ? dw : held * (dw - inner)",
        "held * (dw - inner)",
    ),
]

LAYER_NORM = [
    Fault(
        "cpu-layer-norm-without-eps",
        "eps does not count where channels are contiguous.",
        "scale = splat<Acc>(1 / __builtin_sqrt(variance[0] + eps));",
        "scale = splat<Acc>(1 / __builtin_sqrt(variance[0]));",
    ),
    Fault(
        "cpu-layer-norm-gradient-without-slope",
        "The variance is differentiated as a constant.",
        "scale * (g - mean - hat * slope)",
        "scale * (g - mean)",
    ),
]

CALLS = [
    Fault(
        "cpu-one-softmax-for-all-heads",
        "Heads of tokenize that see all channels have one softmax over tokens.",
        "call.query_heads * call.queries_per_head / num_heads;",
        "call.queries_per_head;",
    ),
]
