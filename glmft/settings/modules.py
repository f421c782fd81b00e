"""Names of parameters and modules as flags give them: parts of names, and groups of linear modules."""

# Linear modules by the last part of their names in the official layouts, and what they are in transformers' own.
ALSO = {
    "query_key_value": ["q_proj", "k_proj", "v_proj"],
    "dense": ["o_proj"],
    "dense_h_to_4h": ["gate_up_proj"],
    "dense_4h_to_h": ["down_proj"],
}
BOTH = {name: [name, *others] for name, others in ALSO.items()}
ATTENTION = [*BOTH["query_key_value"], *BOTH["dense"]]
FEED_FORWARD = [*BOTH["dense_h_to_4h"], *BOTH["dense_4h_to_h"]]
PRESETS = {"attention": ATTENTION, "mlp": FEED_FORWARD, "all-linear": ATTENTION + FEED_FORWARD}
GROUPS = PRESETS | BOTH
# Of a layer's parameters, by parts of their names.
PARTS = {"all": (".",), "attention": ("attention.", "self_attn."), "mlp": (".mlp.",)}
# Parts of the names of what stands behind all layers.
BEHIND = ("final_layernorm", "output_layer", "model.norm", "lm_head")


def matching(names: list[str], pattern: str) -> list[str]:
    """Names that hold the pattern as whole dotted parts (`layers.1` is not `layers.11`), else as a substring."""
    parts = f".{pattern.strip('.')}."
    return [n for n in names if parts in f".{n}."] or [n for n in names if pattern in n]


def layer_numbers(names: list[str]) -> list[int]:
    """The numbers of the layers that parameters are in."""
    return sorted({int(n.split(".layers.")[1].split(".")[0]) for n in names if ".layers." in n})


def lowest_layer(trained: list[str], layers: int) -> int:
    """The first of so many layers that a gradient goes through; 0 if something before them trains.

    Args:
        trained: names of what trains; `layers` itself comes back where all of that stands behind them.
    """
    outside = [f".{name}." for name in trained if ".layers." not in name]
    if any(not any(f".{part}." in name for part in BEHIND) for name in outside):
        return 0
    return min(layer_numbers(trained), default=layers)
