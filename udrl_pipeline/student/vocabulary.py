"""Tokenizers of students: trained on the corpus, or a teacher's cut down to it. Control tokens are special tokens."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

END = "<|end|>"


def train_bpe(texts: Iterable[str], size: int, control_tokens: Sequence[str]) -> Any:
    """A byte-level BPE tokenizer of at most `size` entries, trained on texts, with the control tokens added."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END, padding_side="left")
    add_control_tokens(wrapped, control_tokens)
    return wrapped


def cut(tokenizer: Any, texts: Sequence[str], keep_merges: int, control_tokens: Sequence[str]) -> tuple[Any, list[int]]:
    """A BPE tokenizer cut to what `texts` need, and the old id of each entry that is kept, in the new order.

    Kept are the bytes, the tokens that the texts use, everything those are merged from, and the `keep_merges` most frequent
    merges, so that words the texts do not hold stay in few pieces. The texts are split as before. Control tokens come last
    and have no old id.
    """
    from tokenizers import Tokenizer, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary: dict[str, int] = state["model"]["vocab"]
    merges = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in state["model"]["merges"]]
    parts: dict[str, tuple[str, str]] = {}
    for a, b in merges:
        parts.setdefault(a + b, (a, b))
    used = {token for row in tokenizer(list(texts), add_special_tokens=False)["input_ids"] for token in set(row)}
    names = {index: name for name, index in vocabulary.items()}
    kept = set(pre_tokenizers.ByteLevel.alphabet()) & vocabulary.keys()
    kept |= {a + b for a, b in merges[:keep_merges]} | {names[index] for index in used if index in names} | {tokenizer.eos_token}
    waiting = list(kept)
    while waiting:
        for part in parts.get(waiting.pop(), ()):
            if part not in kept:
                kept.add(part)
                waiting.append(part)
    ordered = sorted(kept & vocabulary.keys(), key=lambda name: vocabulary[name])
    state["model"]["vocab"] = {name: index for index, name in enumerate(ordered)}
    state["model"]["merges"] = [[a, b] for a, b in merges if a in kept and b in kept and a + b in kept]
    state["added_tokens"] = [t | {"id": ordered.index(t["content"])} for t in state["added_tokens"] if t["content"] == tokenizer.eos_token]
    state["post_processor"] = None
    smaller = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        eos_token=tokenizer.eos_token,
        pad_token=tokenizer.eos_token,
        padding_side="left",
    )
    add_control_tokens(smaller, control_tokens)
    return smaller, [vocabulary[name] for name in ordered]


def add_control_tokens(tokenizer: Any, control_tokens: Sequence[str]) -> None:
    from transformers import AddedToken

    tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in control_tokens], special_tokens=True)
