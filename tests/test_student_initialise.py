"""Where students start: pruned from the real teacher, from scratch, from a checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from test_commands import SPACE
from udrl_pipeline.errors import ModelError, StudentError
from udrl_pipeline.models import resolve
from udrl_pipeline.settings import Settings
from udrl_pipeline.student.initialise import Start, initialise, kept_layers
from udrl_pipeline.student.vocabulary import cut

TEXTS = [
    "A red fox in fresh snow, photorealistic",
    "Lighthouse above grey waves, oil painting, muted colours",
    "Poster für ein Café – 50% off!",
]
TINY = {"student.scratch.layers": 2, "student.scratch.width": 32, "student.scratch.heads": 2, "student.scratch.vocabulary": 400}


@pytest.fixture
def teacher_tokenizer(settings: Settings) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(resolve(settings.teacher.model, settings).folder)


def test_a_cut_vocabulary_splits_the_corpus_as_before(teacher_tokenizer: Any) -> None:
    smaller, old_ids = cut(teacher_tokenizer, TEXTS, 0, SPACE.control_tokens())
    assert len(smaller) < 700
    for text in TEXTS:
        before = teacher_tokenizer(text, add_special_tokens=False)["input_ids"]
        after = smaller(text, add_special_tokens=False)["input_ids"]
        assert [old_ids[token] for token in after] == before
        assert smaller.decode(after) == text


def test_a_cut_vocabulary_still_writes_what_the_corpus_does_not_hold(teacher_tokenizer: Any) -> None:
    smaller, _ = cut(teacher_tokenizer, TEXTS, 1000, SPACE.control_tokens())
    text = "Zeppelin über Tōkyō 🦊"
    assert smaller.decode(smaller(text, add_special_tokens=False)["input_ids"]) == text


def test_a_cut_vocabulary_keeps_the_end_and_adds_the_control_tokens(teacher_tokenizer: Any) -> None:
    smaller, old_ids = cut(teacher_tokenizer, TEXTS, 0, SPACE.control_tokens())
    assert smaller.eos_token == teacher_tokenizer.eos_token
    assert old_ids[smaller.eos_token_id] == teacher_tokenizer.eos_token_id
    assert smaller.convert_tokens_to_ids(SPACE.control_tokens()) == list(range(len(old_ids), len(smaller)))


@pytest.mark.parametrize(
    ("total", "keep", "rule", "kept"),
    [
        (30, 9, "ends", [0, 1, 2, 3, 4, 5, 6, 28, 29]),
        (30, 4, "even", [0, 10, 19, 29]),
        (30, 1, "ends", [0]),
        (4, 9, "ends", [0, 1, 2, 3]),
        (30, (29, 0, 11), "ends", [0, 11, 29]),
    ],
)
def test_layers_are_kept_by_a_named_rule_or_as_they_are_listed(total: int, keep: Any, rule: str, kept: list[int]) -> None:
    assert kept_layers(total, keep, rule) == kept


@pytest.mark.parametrize("listed", [(0, 30), (0, 0, 1), ()])
def test_listed_layers_that_are_not_the_teachers_are_a_typed_error(listed: tuple[int, ...]) -> None:
    with pytest.raises(StudentError, match="are not layers of a teacher of 30") as error:
        kept_layers(30, listed, "ends")
    assert (error.value.where, "0 to 29" in error.value.remedy) == ("params.yaml: student.prune.layers", True)


def test_every_control_token_begins_as_something_else(load: Callable[..., Settings]) -> None:
    import torch

    start = initialise(load({"student.prune.layers": 1, "student.prune.keep_merges": 0}), SPACE, TEXTS)
    ids = start.tokenizer.convert_tokens_to_ids(SPACE.control_tokens())
    vectors = start.model.get_input_embeddings().weight[ids]
    distances = torch.cdist(vectors, vectors) + torch.eye(len(ids)) * 9
    assert distances.min() > 0.05 * vectors.norm(dim=1).mean()


def test_a_pruned_teacher_has_the_teachers_own_weights(load: Callable[..., Settings]) -> None:
    import torch
    from safetensors.torch import load_file

    settings = load({"student.prune.layers": 3, "student.prune.keep_merges": 0})
    start = initialise(settings, SPACE, TEXTS)
    teacher = load_file(resolve(settings.teacher.model, settings).weights)
    state = start.model.state_dict()
    assert start.how["layers"] == [0, 28, 29]
    assert torch.equal(state["model.layers.1.mlp.up_proj.weight"], teacher["model.layers.28.mlp.up_proj.weight"].float())
    fox = start.tokenizer(" fox", add_special_tokens=False)["input_ids"][0]
    row = teacher["model.embed_tokens.weight"].float()
    assert any(torch.equal(state["model.embed_tokens.weight"][fox], candidate) for candidate in row[[fox_id(settings)]])


def fox_id(settings: Settings) -> int:
    from transformers import AutoTokenizer

    return int(
        AutoTokenizer.from_pretrained(resolve(settings.teacher.model, settings).folder)(" fox", add_special_tokens=False)["input_ids"][0]
    )


def saved_start(load: Callable[..., Settings], folder: Path) -> Start:
    start = initialise(load({"student.init_from": "scratch", **TINY}), SPACE, TEXTS)
    start.model.save_pretrained(folder)
    start.tokenizer.save_pretrained(folder)
    return start


def test_scratch_is_a_gpt2_of_the_size_asked_for(load: Callable[..., Settings]) -> None:
    start = initialise(load({"student.init_from": "scratch", **TINY}), SPACE, TEXTS)
    config = start.model.config
    assert (config.model_type, config.n_layer, config.n_embd, config.n_head) == ("gpt2", 2, 32, 2)
    assert config.vocab_size == len(start.tokenizer)


def test_scratch_starts_the_same_for_the_same_seed(load: Callable[..., Settings]) -> None:
    import torch

    def weights(seed: int) -> Any:
        return initialise(load({"student.init_from": "scratch", "student.seed": seed, **TINY}), SPACE, TEXTS).model.transformer.wte.weight

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_a_checkpoint_gets_the_control_tokens_that_it_lacks(load: Callable[..., Settings], tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    from udrl_pipeline.student.vocabulary import train_bpe

    tokenizer = train_bpe(TEXTS, 300, [])
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=64)).save_pretrained(
        tmp_path / "gpt2"
    )
    tokenizer.save_pretrained(tmp_path / "gpt2")
    start = initialise(load({"student.init_from": f"path:{tmp_path / 'gpt2'}"}), SPACE, TEXTS)
    assert start.how["new_tokens"] == len(SPACE.control_tokens())
    assert start.model.get_input_embeddings().weight.shape == (len(start.tokenizer), 16)


def test_an_earlier_student_needs_no_new_tokens(load: Callable[..., Settings], tmp_path: Path) -> None:
    before = saved_start(load, tmp_path / "student")
    start = initialise(load({"student.init_from": f"path:{tmp_path / 'student'}"}), SPACE, TEXTS)
    assert start.how["new_tokens"] == 0
    assert start.tokenizer.get_vocab() == before.tokenizer.get_vocab()


def test_neighbouring_lengths_start_with_similar_embeddings(load: Callable[..., Settings]) -> None:
    import torch

    start = initialise(load({"student.prune.layers": 1, "student.prune.keep_merges": 0}), SPACE, TEXTS)
    weight = start.model.get_input_embeddings().weight.detach()
    twelve, thirteen, forty = (weight[start.tokenizer.convert_tokens_to_ids(f"<|words:{n}|>")] for n in (12, 13, 40))
    assert torch.dist(twelve, thirteen) < torch.dist(twelve, forty) / 2


def test_a_width_that_the_heads_do_not_divide_is_an_error(load: Callable[..., Settings]) -> None:
    with pytest.raises(StudentError, match="width 32 is no multiple of heads 5"):
        initialise(load({"student.init_from": "scratch", **TINY, "student.scratch.heads": 5}), SPACE, TEXTS)


def test_a_checkpoint_that_is_not_there_is_an_error(load: Callable[..., Settings], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nothing is there"):
        initialise(load({"student.init_from": f"path:{tmp_path / 'nowhere'}"}), SPACE, TEXTS)
