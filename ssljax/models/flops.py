"""Forward FLOPs per example: matrix products only, 2 m n k for a product [m, k] @ [k, n].

Norms, activations, softmax and table lookups (a few per cent) are not counted. A train step without rematerialisation
costs as much as three forward passes.
"""

from ssljax.layers.config import GATED, BlockConfig
from ssljax.layers.terms.registry import terms_of

TRAINING = 3  # forward passes that a train step costs: a backward pass counts as two


def stack_flops(config: BlockConfig, depth: int, tokens: int, causal: bool = False) -> float:
    """Forward FLOPs of `depth` blocks, each applied `config.repeats` times, on a sequence of `tokens` tokens.

    Allowed pairs of tokens are counted: T (T + 1) / 2 with `causal`, those in the window of local layers, even if the
    kernel computes and masks all T^2.
    """
    width, inner = config.known("width"), config.head_width * config.known("heads")
    projections = 2 * width * inner + 2 * width * config.head_width * config.groups
    matrices = 3 if config.activation in GATED else 2
    feed_forward = matrices * width * config.hidden
    layers = depth * config.repeats
    reach = [config.known("window") if kind == "local" else tokens for kind in config.kinds(layers)]
    pairs = sum(_pairs(tokens, window, causal) for window in reach) / layers
    per_pair = 2 * inner + (2 * config.known("heads") ** 2 if config.talking_heads else 0)
    flops = tokens * (projections + feed_forward) + pairs * per_pair
    if config.experts is not None:  # blocks with experts: top_k feed-forward parts and a router instead of one part
        expert = matrices * width * (config.experts.mlp_dim or config.hidden)
        sparse = config.experts.top_k * expert - feed_forward + width * config.experts.count
        flops += tokens * sparse / config.experts.every
    flops += sum(term.flops(tokens) for term in terms_of(config))
    convolution = 0 if config.convolution is None else tokens * config.convolution.size * width * width
    return 2.0 * (layers * flops + convolution)


def _pairs(tokens: int, window: int, causal: bool) -> int:
    """The number of pairs of a query and a key less than `window` tokens away; with `causal`, not after the query."""
    near = min(window, tokens)
    before = tokens * near - near * (near - 1) // 2  # the key is the query itself or comes before it
    return before if causal else 2 * before - tokens


def dense_flops(rows: int, inputs: int, outputs: int) -> float:
    """FLOPs of x [rows, inputs] @ kernel [inputs, outputs]."""
    return 2.0 * rows * inputs * outputs
