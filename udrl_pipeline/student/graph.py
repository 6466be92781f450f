"""A student as an ONNX graph for ONNX Runtime: one step of decoding with a key-value cache that stays where it is.

    input_ids [rows, tokens], last [rows], past_keys [rows] int32, total int32, positions [rows, tokens] (GPT-2 alone),
    past.<layer>.key and .value [rows, heads, room, width]  ->  logits [rows, vocabulary] of the `last` token of each row,
    present.<layer>.key and .value

The first call gets the whole prompts, padded on the right, each later one a token a row. `past_keys` is the index of each row's
last key after the call; rows of different lengths may stand side by side. Bound to the same memory, past and present are one.

The operators are those that ONNX Runtime's own builder of language models uses (GroupQueryAttention, SkipLayerNormalization,
MatMulNBits). That builder knows no GPT-2, and `torch.onnx.export` cannot write these, so the graph is written here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from udrl_pipeline.errors import StudentError

#: Most positions of a prompt and its text; students have fewer.
MOST_POSITIONS = 1024
OPSET, CONTRIB = 20, "com.microsoft"
#: MatMulNBits: the products themselves in int8, for which processors have instructions; otherwise they are made in fp32, 40 times slower.
INT8_PRODUCTS = 4
#: What GroupQueryAttention wants the width of a head to be a multiple of.
HEAD_MULTIPLE = 16
LLAMA_LIKE = ("llama", "mistral", "qwen2")
SUPPORTED = (*LLAMA_LIKE, "gpt2")


@dataclass
class _Graph:
    """Nodes and weights in the making. With `block` the weights of products take 8 bits, `block` of them sharing a scale."""

    block: int | None
    nodes: list[Any] = field(default_factory=list)
    weights: dict[str, Any] = field(default_factory=dict)

    def add(self, kind: str, inputs: list[str], outputs: int = 1, domain: str = "", **attributes: Any) -> Any:
        """Add a node. Returns the name of its output, or of all of them where there are several."""
        from onnx import helper

        name = f"{kind}_{len(self.nodes)}"
        names = [f"{name}.{n}" if n else name for n in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, name=name, domain=domain, **attributes))
        return names if outputs > 1 else names[0]

    def weight(self, name: str, value: Any) -> str:
        self.weights[name] = np.ascontiguousarray(value)
        return name

    def linear(self, value: str, name: str, weight: Any, bias: Any = None) -> str:
        """value @ weight + bias, with `weight` of shape [inputs, outputs]."""
        if self.block is None:
            product = self.add("MatMul", [value, self.weight(f"{name}.weight", weight)])
        else:
            whole, scales = quantised(weight, self.block)
            inputs = [value, self.weight(f"{name}.weight", whole), self.weight(f"{name}.scales", scales)]
            size = {"K": weight.shape[0], "N": weight.shape[1], "bits": 8, "block_size": self.block}
            product = self.add("MatMulNBits", inputs, domain=CONTRIB, **size, accuracy_level=INT8_PRODUCTS)
        return product if bias is None else self.add("Add", [product, self.weight(f"{name}.bias", bias)])


def refusal(config: Any) -> str | None:
    """Why a model of this configuration cannot be written as a graph; None where it can."""
    if config.model_type not in SUPPORTED:
        return f"models of type {config.model_type} are not supported ({', '.join(SUPPORTED)} are)"
    if (getattr(config, "sliding_window", None) or MOST_POSITIONS) < MOST_POSITIONS:
        return f"a sliding window of {config.sliding_window} tokens is not supported"
    if (width := shape_of(config)["width"]) % HEAD_MULTIPLE:
        return f"heads of width {width} are not supported (a multiple of {HEAD_MULTIPLE} is)"
    return None


def to_onnx(model: Any, block: int | None = None) -> Any:
    """The graph of a transformers model as an ONNX model: in fp32, or in int8 with a scale for `block` weights.

    In int8 the activations of a product are rounded too, in blocks of their own row: a text does not depend on those beside it.

    Raises:
        StudentError: The architecture is not one of `SUPPORTED`.
    """
    if reason := refusal(model.config):
        raise StudentError(f"cannot be exported: {reason}", where="student_export", remedy="ask the student with --engine transformers")
    state = {name: tensor.detach().float().cpu().numpy() for name, tensor in model.state_dict().items()}
    graph = _Graph(block)
    logits = _gpt2(graph, state, model.config) if model.config.model_type == "gpt2" else _llama(graph, state, model)
    return _finished(graph, logits, model.config)


def quantised(weight: Any, block: int) -> tuple[Any, Any]:
    """Weights [inputs, outputs] as MatMulNBits takes them: uint8 [outputs, blocks, block] around 128, and a scale for each block."""
    inputs, outputs = weight.shape
    blocks = -(-inputs // block)
    padded = np.zeros((outputs, blocks * block), np.float32)
    padded[:, :inputs] = weight.T
    padded = padded.reshape(outputs, blocks, block)
    scales = np.abs(padded).max(axis=2) / 127
    whole = np.rint(padded / np.where(scales == 0, 1, scales)[..., None]) + 128
    return whole.astype(np.uint8), scales.astype(np.float32).reshape(-1)


def save(model: Any, file: Path) -> None:
    """Write the model; the same model gives the same bytes."""
    file.write_bytes(model.SerializeToString(deterministic=True))


def shape_of(config: Any) -> dict[str, int]:
    """Layers, heads of keys and values, width of a head, positions."""
    heads = config.num_attention_heads
    return {
        "layers": config.num_hidden_layers,
        "heads": getattr(config, "num_key_value_heads", None) or heads,
        "width": getattr(config, "head_dim", None) or config.hidden_size // heads,
        "positions": min(config.max_position_embeddings, MOST_POSITIONS),
    }


def _attention(graph: _Graph, packed: str, layer: int, config: Any, rotary: bool) -> str:
    shape = shape_of(config)
    attended, *_ = graph.add(
        "GroupQueryAttention",
        [packed, "", "", f"past.{layer}.key", f"past.{layer}.value", "past_keys", "total", *(["cosines", "sines"] if rotary else [])],
        3,
        CONTRIB,
        num_heads=config.num_attention_heads,
        kv_num_heads=shape["heads"],
        do_rotary=int(rotary),
    )
    node = graph.nodes[-1]
    node.output[1], node.output[2] = f"present.{layer}.key", f"present.{layer}.value"
    return str(attended)


def _last(graph: _Graph, hidden: str) -> str:
    """The hidden state of the `last` token of each row; [rows, width]."""
    column = graph.add("Unsqueeze", ["last", graph.weight("minus_one", np.array([-1], np.int64))])
    return str(graph.add("GatherND", [hidden, column], batch_dims=1))


def _embedded(graph: _Graph, table: Any) -> str:
    """The embeddings of the tokens. Beside weights in int8 they take half their size: they are looked up, and exact to 11 bits."""
    if graph.block is not None:
        return str(graph.add("Cast", [graph.add("Gather", [graph.weight("embedding", table.astype(np.float16)), "input_ids"])], to=1))
    return str(graph.add("Gather", [graph.weight("embedding", table), "input_ids"]))


def _llama(graph: _Graph, state: Mapping[str, Any], model: Any) -> str:
    import torch

    config = model.config
    positions = torch.arange(shape_of(config)["positions"])[None]
    cosines, sines = model.model.rotary_emb(torch.zeros(1), positions)
    for name, waves in (("cosines", cosines), ("sines", sines)):
        graph.weight(name, waves[0, :, : waves.shape[-1] // 2].float().numpy())
    norm = {"axis": -1, "epsilon": config.rms_norm_eps}
    skip: dict[str, Any] = {"epsilon": config.rms_norm_eps}

    def joined(prefix: str, names: tuple[str, ...], kind: str) -> Any:
        parts = [state[f"{prefix}{name}.{kind}"] for name in names if f"{prefix}{name}.{kind}" in state]
        return np.concatenate(parts) if len(parts) == len(names) else None

    hidden = _embedded(graph, state["model.embed_tokens.weight"])
    gain = graph.weight("layers.0.input_norm", state["model.layers.0.input_layernorm.weight"])
    normed = graph.add("SimplifiedLayerNormalization", [hidden, gain], **norm)
    for layer in range(config.num_hidden_layers):
        prefix, short = f"model.layers.{layer}.", f"layers.{layer}."
        weight, bias = (joined(f"{prefix}self_attn.", ("q_proj", "k_proj", "v_proj"), kind) for kind in ("weight", "bias"))
        packed = graph.linear(normed, f"{short}qkv", weight.T, bias)
        attended = _attention(graph, packed, layer, config, rotary=True)
        name = f"{prefix}self_attn.o_proj"
        attended = graph.linear(attended, f"{short}out", state[f"{name}.weight"].T, state.get(f"{name}.bias"))
        gain = graph.weight(f"{short}post_norm", state[f"{prefix}post_attention_layernorm.weight"])
        normed, _, _, hidden = graph.add("SkipSimplifiedLayerNormalization", [hidden, attended, gain], 4, CONTRIB, **skip)
        weight, bias = (joined(f"{prefix}mlp.", ("gate_proj", "up_proj"), kind) for kind in ("weight", "bias"))
        gate, up = graph.add("Split", [graph.linear(normed, f"{short}gate_up", weight.T, bias)], 2, axis=-1, num_outputs=2)
        opened = graph.add("Mul", [graph.add("QuickGelu", [gate], domain=CONTRIB, alpha=1.0), up])
        name = f"{prefix}mlp.down_proj"
        added = graph.linear(opened, f"{short}down", state[f"{name}.weight"].T, state.get(f"{name}.bias"))
        following = f"model.layers.{layer + 1}.input_layernorm" if layer + 1 < config.num_hidden_layers else "model.norm"
        gain = graph.weight(f"{short}next_norm", state[f"{following}.weight"])
        normed, _, _, hidden = graph.add("SkipSimplifiedLayerNormalization", [hidden, added, gain], 4, CONTRIB, **skip)
    return graph.linear(_last(graph, normed), "head", state["lm_head.weight"].T)


def _gpt2(graph: _Graph, state: Mapping[str, Any], config: Any) -> str:
    skip: dict[str, Any] = {"epsilon": config.layer_norm_epsilon}

    def norm_of(name: str) -> list[str]:
        return [graph.weight(f"{name}.{kind}", state[f"transformer.{name}.{kind}"]) for kind in ("weight", "bias")]

    table = graph.weight("places", state["transformer.wpe.weight"][: shape_of(config)["positions"]])
    hidden = graph.add("Add", [_embedded(graph, state["transformer.wte.weight"]), graph.add("Gather", [table, "positions"])])
    normed = graph.add("LayerNormalization", [hidden, *norm_of("h.0.ln_1")], axis=-1, epsilon=config.layer_norm_epsilon)
    for layer in range(config.num_hidden_layers):
        short = f"h.{layer}."

        def linear(value: str, name: str, short: str = short) -> str:
            weight, bias = (state[f"transformer.{short}{name}.{kind}"] for kind in ("weight", "bias"))
            return graph.linear(value, f"{short}{name}", weight, bias)

        attended = linear(_attention(graph, linear(normed, "attn.c_attn"), layer, config, rotary=False), "attn.c_proj")
        normed, _, _, hidden = graph.add("SkipLayerNormalization", [hidden, attended, *norm_of(f"{short}ln_2")], 4, CONTRIB, **skip)
        added = linear(graph.add("FastGelu", [linear(normed, "mlp.c_fc")], domain=CONTRIB), "mlp.c_proj")
        following = f"h.{layer + 1}.ln_1" if layer + 1 < config.num_hidden_layers else "ln_f"
        normed, _, _, hidden = graph.add("SkipLayerNormalization", [hidden, added, *norm_of(following)], 4, CONTRIB, **skip)
    return graph.linear(_last(graph, normed), "head", state["lm_head.weight"].T)


def _finished(graph: _Graph, logits: str, config: Any) -> Any:
    from onnx import TensorProto, helper, numpy_helper

    shape, integer, number = shape_of(config), TensorProto.INT64, TensorProto.FLOAT
    cache = ["rows", shape["heads"], "room", shape["width"]]
    names = [f"{layer}.{part}" for layer in range(shape["layers"]) for part in ("key", "value")]
    inputs = [
        helper.make_tensor_value_info("input_ids", integer, ["rows", "tokens"]),
        helper.make_tensor_value_info("last", integer, ["rows"]),
        helper.make_tensor_value_info("past_keys", TensorProto.INT32, ["rows"]),
        helper.make_tensor_value_info("total", TensorProto.INT32, []),
        *([helper.make_tensor_value_info("positions", integer, ["rows", "tokens"])] if config.model_type == "gpt2" else []),
        *(helper.make_tensor_value_info(f"past.{name}", number, cache) for name in names),
    ]
    graph.nodes.append(helper.make_node("Identity", [logits], ["logits"]))
    outputs = [
        helper.make_tensor_value_info("logits", number, ["rows", config.vocab_size]),
        *(helper.make_tensor_value_info(f"present.{name}", number, cache) for name in names),
    ]
    weights = [numpy_helper.from_array(value, name) for name, value in graph.weights.items()]
    made = helper.make_graph(graph.nodes, "student", inputs, outputs, weights)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
    return helper.make_model(made, opset_imports=opsets, ir_version=10, producer_name="udrl_pipeline")
