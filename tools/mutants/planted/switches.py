"""Faults in what the op family's switches need of the CUDA kernels, by file."""

from tools.mutants.planted.fault import PROJECT, TOKENIZE, Fault

IN_ROWS = [
    Fault(
        "rows-of-blocks-not-packed",
        "Keys for channel blocks are read at the channels of full-width keys.",
        "column -= head * from.width;",
        "",
        kernels=f"{PROJECT}:Bf16",
    ),
    Fault(
        "rows-of-blocks-in-all-channels",
        "Keys for channel blocks see other heads' channels.",
        "inside = inside && c / from.width == head;",
        "",
        kernels=f"{PROJECT}:Bf16",
    ),
]

IN_KERNEL = [
    Fault(
        "weights-exp-left-out",
        'Weights of normalize="exp" are the logits.',
        "call.weights == Weights::exp ? power_of_two(logit[n] * kLog2e) : logit[n];",
        "logit[n];",
        kernels=f"{PROJECT}:Bf16",
    ),
    Fault(
        "weights-exp-of-two",
        'Weights of normalize="exp" are powers of two.',
        "power_of_two(logit[n] * kLog2e) : logit[n];",
        "power_of_two(logit[n]) : logit[n];",
        kernels=f"{PROJECT}:Bf16",
    ),
    Fault(
        "weights-of-removed-rows",
        "Without a softmax, a removed row weighs minus infinity.",
        "if ((removed >> n & 1) == 0) weight[n] = call.weights",
        "weight[n] = call.weights",
        kernels=f"{PROJECT}:Bf16",
    ),
    Fault(
        "weights-without-pixel-bias",
        "The pixel bias does not count where tokens are plain sums.",
        "const float sum = warp.score(0, row, pixel) + shift;",
        "const float sum = warp.score(0, row, pixel);",
        kernels=f"{TOKENIZE}:Bf16",
    ),
    Fault(
        "backward-exp-without-weights",
        "The gradient of exp is that of the logits.",
        "dlogit[n] = call.weights == Weights::exp ? weight[n] * grad[n] : grad[n];",
        "dlogit[n] = grad[n];",
        kernels=f"{PROJECT}:Bf16",
    ),
    Fault(
        "backward-logits-of-unused-pixels",
        "Without a softmax, masked pixels have gradients.",
        "if (used && !removed) dlogit[n]",
        "if (!removed) dlogit[n]",
        kernels=f"{TOKENIZE}:Bf16",
    ),
    Fault(
        "backward-logits-of-removed-rows",
        "Without a softmax, removed rows have gradients.",
        "if (used && !removed) dlogit[n]",
        "if (used) dlogit[n]",
        kernels=f"{TOKENIZE}:Bf16",
    ),
    Fault(
        "bias-of-the-first-head",
        "All heads of tokenize have the first head's token bias.",
        "at.b * call.token_bias.batch + static_cast<int64_t>(at.head) * call.keys_count;",
        "at.b * call.token_bias.batch;",
        kernels=f"{TOKENIZE}:Bf16",
    ),
    Fault(
        "keys-of-value-blocks",
        "Keys for channel blocks are split into heads as values are.",
        "keys.each = call.keys_count / call.key_blocks;",
        "keys.each = call.keys_count / call.value_blocks;",
        kernels=f"{PROJECT}:Bf16",
    ),
    Fault(
        "values-of-key-blocks",
        "Values are summed over the heads where keys see all channels.",
        "values.each = call.keys_count / call.value_blocks;",
        "values.each = call.keys_count / call.key_blocks;",
        kernels=f"{PROJECT}:Bf16",
    ),
    Fault(
        "removed-queries-kept",
        "What a removed query holds reaches dX, even NaN.",
        "call.plain_sums != 0 ? absent_keys(call, at) : 0, warp.channel",
        "0, warp.channel",
        kernels=f"{TOKENIZE}:Bf16",
    ),
]

IN_FORWARD = [
    Fault(
        "plain-sums-without-bias",
        "Where tokens are plain sums, token biases are what the memory held.",
        "if (keys || (queries && plain_sums(call)))",
        "if (keys)",
        kernels=f"{TOKENIZE}:Bf16",
    ),
    Fault(
        "plain-sums-bias-stays-from-the-sample-before",
        "Where queries are shared and biases are not, samples of a block use the first one's.",
        "call.queries.batch != 0 || call.token_bias.batch != 0 || at.b == 0);",
        "call.queries.batch != 0 || at.b == 0);",
        kernels=f"{TOKENIZE}:Bf16",
    ),
    Fault(
        "plain-sums-of-masked-pixels",
        "Masked pixels count in the mass.",
        "const float exact = counts ? weight[n] : 0.f;",
        "const float exact = weight[n];",
        kernels=f"{TOKENIZE}:Bf16",
    ),
    Fault(
        "plain-sums-of-removed-rows",
        "An infinite pixel makes the token of a removed row NaN.",
        "const float scale = removed            ? 0.f : plain_sums(call) ? 1.f",
        "const float scale = plain_sums(call) ? 1.f",
        kernels=f"{TOKENIZE}:Bf16",
    ),
    Fault(
        "plain-sums-lse",
        "The mass is an lse.",
        "plain_sums(call) ? total.y : lse_of(highest, total.y)",
        "lse_of(highest, total.y)",
        kernels=f"{TOKENIZE}:Bf16",
    ),
    Fault(
        "plain-sums-without-maximum",
        "Parts of plain sums count as if they were empty.",
        "set_shared(call.places.highest + row * 4, plain_sums(call) ? 0.f : minus_infinity());",
        "set_shared(call.places.highest + row * 4, minus_infinity());",
        kernels=f"{TOKENIZE}:Bf16",
    ),
    Fault(
        "combine-plain-sums-of-removed-rows",
        "An infinite pixel makes the token of a removed row of a split sample NaN.",
        "const float inverse = removed      ? 0.f : plain_sums ? 1.f",
        "const float inverse = plain_sums ? 1.f",
        kernels=f"{TOKENIZE}:Bf16",
    ),
    Fault(
        "combine-plain-sums-of-another-head",
        "Rows of a split sample are removed as in the first head.",
        "static_cast<int64_t>(head) * call.keys_count + row) == minus_infinity();",
        "row) == minus_infinity();",
        kernels=f"{TOKENIZE}:Bf16",
    ),
]

IN_BACKWARD = [
    Fault(
        "plain-sums-delta-of-tokens",
        "Weights that are not a softmax over pixels are differentiated as such.",
        "c < call.out_channels && !plain_sums(call);",
        "c < call.out_channels;",
        kernels=f"{TOKENIZE}:Bf16",
    ),
    Fault(
        "plain-sums-without-gradient-of-mass",
        "The gradient of the mass does not count.",
        "grad[n] = warp.score(1, row, p) - shared<float>(places.delta + row * 4);",
        "grad[n] = warp.score(1, row, p);",
        kernels=f"{TOKENIZE}:Bf16",
    ),
    Fault(
        "plain-sums-without-room-for-bias",
        "Parts have no room for the gradient of tokenize's token bias.",
        "if (project || call.plain_sums != 0) part.size += rows;",
        "if (project) part.size += rows;",
        kernels=f"{TOKENIZE}:Bf16",
    ),
    Fault(
        "plain-sums-gradients-of-removed-rows",
        "A gradient of NaN at a removed row reaches dX.",
        "plain_sums(call) ? Base::absent_keys(call, at) : 0, warp.channel",
        "0, warp.channel",
        kernels=f"{TOKENIZE}:Bf16",
    ),
    Fault(
        "plain-sums-without-dpixel-bias",
        "The gradient of the pixel bias is what the memory held.",
        "if (call.dpixel_bias.data != nullptr) set_shared(places.dlogits + (row * TP + p) * 4, ds[n]);",
        "",
        kernels=f"{TOKENIZE}:Bf16",
    ),
    Fault(
        "gradients-of-block-keys-of-full-width",
        "Gradients of keys for channel blocks are written as rows of full width.",
        "static_cast<int64_t>(row - head) * width, row, call.channels",
        "static_cast<int64_t>(row) * width, row, call.channels",
        kernels=f"{PROJECT}:Bf16",
    ),
    Fault(
        "combine-block-keys-of-all-channels",
        "Of keys for channel blocks, split samples add the wrong channels.",
        "exists = row < rows && c / channels == row / each;",
        "exists = row < rows;",
        kernels=f"{PROJECT}:Bf16",
    ),
    Fault(
        "bias-gradient-of-the-first-head",
        "Gradients of tokenize's token bias go to the first head.",
        "static_cast<int64_t>(at.b) * call.query_heads + at.head;\n          set_number<T>(call.dtoken_bias",
        "static_cast<int64_t>(at.b) * call.query_heads;\n          set_number<T>(call.dtoken_bias",
        kernels=f"{TOKENIZE}:Bf16",
    ),
]

IN_CALLS = [
    Fault(
        "call-heads-of-full-width-as-one",
        "Heads of tokenize that see all channels have one softmax over tokens.",
        "sizes.num_heads = static_cast<int32_t>(call.queries_per_head / call.softmax_rows);",
        "sizes.num_heads = 1;",
        kernels=f"{TOKENIZE}:Bf16",
    ),
    Fault(
        "call-pooling-weights-of-project",
        "normalize=None of tokenize is a softmax over tokens.",
        "sizes.weights = weights_of(call.pooling);",
        "",
        kernels=f"{TOKENIZE}:Bf16",
    ),
]

IN_OPS = [
    Fault(
        "ops-heads-always-see-blocks",
        "Several heads of full width are taken for channel blocks.",
        "blocks_seen(queries, sizes.channels, num_heads));\n  sizes.pooling",
        "num_heads);\n  sizes.pooling",
        kernels=f"{TOKENIZE}:Bf16",
    ),
    Fault(
        "ops-bias-under-a-softmax-over-pixels",
        "tokenize ignores a token bias instead of refusing it.",
        'token_bias && normalize == "pixels"',
        "false",
        kernels=f"{TOKENIZE}:Bf16",
    ),
    Fault(
        "ops-exp-in-float16",
        'Weights of normalize="exp" overflow.',
        'half && normalize == "exp"',
        "false",
        kernels=f"{PROJECT}:Fp16",
    ),
]
