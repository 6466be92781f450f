"""Where a student starts: `scratch`, a depth- and vocabulary-pruned teacher, the recorded one, or a checkpoint. All get the same tokens."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udrl_pipeline.commands import CommandSpace
from udrl_pipeline.errors import ModelError, StudentError
from udrl_pipeline.models import resolve
from udrl_pipeline.settings import ModelRef, Settings
from udrl_pipeline.student import lexicon, recorded
from udrl_pipeline.student.vocabulary import add_control_tokens, cut, train_bpe

#: The number at which a command's embeddings have run through half a wave.
LARGEST = {"words": 40, "quality": 5}


@dataclass(frozen=True)
class Start:
    """An untrained student (fp32), its tokenizer, how it came about, and the words that it might write (lexicon.py)."""

    model: Any
    tokenizer: Any
    how: dict[str, Any]
    words: Sequence[str] = ()


def initialise(settings: Settings, space: CommandSpace, texts: Sequence[str]) -> Start:
    """Build the student that params.yaml asks for. `texts` are the training split's intents and texts.

    Raises:
        ModelError: A model reference is wrong.
        StudentError: The model cannot be pruned as asked.
    """
    import torch

    torch.manual_seed(settings.student.seed)
    kind = settings.student.init_from
    if kind == "scratch":
        return _scratch(settings, space, texts)
    if kind == "pruned-teacher":
        return _pruned(settings, space, texts)
    if kind == "recorded":
        return from_folder(recorded.student_folder(), space, {"init_from": kind, "version": recorded.manifest()["version"]})
    return from_folder(resolve(ModelRef(ref=kind), settings).folder, space, {"init_from": kind})


def from_folder(folder: Path, space: CommandSpace, how: dict[str, Any]) -> Start:
    """Start from any causal model with a fast tokenizer: a published GPT-2, or an earlier student."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot be loaded: {error}", where=str(folder), remedy="name a folder that transformers loads") from error
    if tokenizer.eos_token is None:
        raise StudentError("its tokenizer has no end-of-text token", where=str(folder), remedy="use another checkpoint")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    known = set(tokenizer.get_vocab())
    new = [token for token in space.control_tokens() if token not in known]
    if new:
        add_control_tokens(tokenizer, new)
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        _embed_control_tokens(model, tokenizer, new)
    return Start(model, tokenizer, how | {"new_tokens": len(new)}, lexicon.load(folder))


def _scratch(settings: Settings, space: CommandSpace, texts: Sequence[str]) -> Start:
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = settings.student.scratch
    if shape.width % shape.heads:
        raise StudentError(
            f"width {shape.width} is no multiple of heads {shape.heads}",
            where="params.yaml: student.scratch",
            remedy="change one of them",
        )
    tokenizer = train_bpe([f" {text}" for text in texts], shape.vocabulary, space.control_tokens())
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=settings.student.max_tokens * 2,
        n_embd=shape.width, n_layer=shape.layers, n_head=shape.heads,
        bos_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return Start(GPT2LMHeadModel(config), tokenizer, {"init_from": "scratch", "vocabulary": len(tokenizer)})


def kept_layers(total: int, keep: int | Sequence[int], rule: str) -> list[int]:
    """Which layers a pruned teacher keeps: those that are listed, or `keep` of them by a rule: `ends` the first ones and the last
    two, `even` the first, the last and an even spread.

    Raises:
        StudentError: A listed layer is not there, or listed twice.
    """
    if not isinstance(keep, int):
        if not keep or max(keep) >= total or len(set(keep)) < len(keep):
            raise StudentError(
                f"{list(keep)} are not layers of a teacher of {total}",
                where="params.yaml: student.prune.layers",
                remedy=f"list different layers from 0 to {total - 1}, or give their number",
            )
        return sorted(keep)
    if keep >= total:
        return list(range(total))
    if rule == "even":
        return sorted({round(i * (total - 1) / max(keep - 1, 1)) for i in range(keep)})
    last = min(2, keep - 1)
    return [*range(keep - last), *range(total - last, total)]


def _pruned(settings: Settings, space: CommandSpace, texts: Sequence[str]) -> Start:
    """The teacher with some of its layers and the tokens that the corpus needs (as in LLM-Pruner, arXiv 2305.11627, by depth)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, shape = resolve(settings.teacher.model, settings).folder, settings.student.prune
    teacher = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False)
    original = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    state = teacher.state_dict()
    if "model.embed_tokens.weight" not in state or not hasattr(teacher.config, "num_hidden_layers"):
        raise StudentError(
            f"{type(teacher).__name__} cannot be pruned (only Llama-like models can)",
            where="params.yaml: student.init_from",
            remedy="set init_from: scratch, or name a GPT-2 checkpoint",
        )
    layers = kept_layers(teacher.config.num_hidden_layers, shape.layers, shape.rule)
    tokenizer, old_ids = cut(original, [f" {text}" for text in texts], shape.keep_merges, space.control_tokens())
    new_ids = {layer: n for n, layer in enumerate(layers)}
    kept = {}
    for name, tensor in state.items():
        match = re.match(r"model\.layers\.(\d+)\.(.*)", name)
        if match is None:
            kept[name] = tensor
        elif int(match[1]) in new_ids:
            kept[f"model.layers.{new_ids[int(match[1])]}.{match[2]}"] = tensor
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in kept:
            old = kept[name][old_ids]
            kept[name] = torch.cat([old, old.mean(dim=0).expand(len(tokenizer) - len(old_ids), -1)])
    values = teacher.config.to_dict() | {"num_hidden_layers": len(layers), "vocab_size": len(tokenizer)}
    values |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokenizer.eos_token_id)
    values.pop("layer_types", None)
    model = AutoModelForCausalLM.from_config(type(teacher.config)(**values), dtype=torch.float32)
    model.load_state_dict(kept)
    _embed_control_tokens(model, tokenizer, space.control_tokens())
    return Start(model, tokenizer, {"init_from": "pruned-teacher", "layers": layers, "vocabulary": len(tokenizer)})


def _embed_control_tokens(model: Any, tokenizer: Any, tokens: Sequence[str]) -> None:
    """Give new tokens embeddings of ordinary size. Neighbouring numbers start close together, so that what one length or
    quality learns helps the next."""
    import torch

    weight = model.get_input_embeddings().weight
    old = weight[: len(tokenizer) - len(tokens)]
    scale, width = float(old.detach().std()), weight.shape[1]
    generator = torch.Generator().manual_seed(0)
    # a basis of its own for each command: with one for both, a length would begin as some quality
    waves = {command: torch.randn(8, width, generator=generator) / 2 for command in LARGEST}
    with torch.no_grad():
        for token in tokens:
            match = re.fullmatch(r"<\|(words|quality):(\d+)\|>", token)
            if match:
                angle = math.pi / 2 * int(match[2]) / LARGEST[match[1]]
                shape = [wave(k * angle) for wave in (math.sin, math.cos) for k in range(1, 5)]
                vector = torch.tensor(shape) @ waves[match[1]]
            else:
                vector = torch.randn(width, generator=generator)
            weight[tokenizer.convert_tokens_to_ids(token)] = old.mean(dim=0) + scale * vector
