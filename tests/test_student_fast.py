"""The fast engine writes what transformers writes: the same graph, the same draws, whatever stands beside a text."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from test_commands import SPACE
from test_student_initialise import TEXTS, TINY
from udrl_pipeline.commands import Command
from udrl_pipeline.errors import StudentError
from udrl_pipeline.settings import Settings
from udrl_pipeline.student import graph
from udrl_pipeline.student.decoding import Beginnings, Decoding, Governor
from udrl_pipeline.student.drawing import Drawing
from udrl_pipeline.student.engines import load_student
from udrl_pipeline.student.export import write_export
from udrl_pipeline.student.fast import MODEL, FastStudent
from udrl_pipeline.student.generation import Batch, Generated, Sampling, Student
from udrl_pipeline.student.initialise import initialise
from udrl_pipeline.student.lexicon import Lexicon

KINDS = ("gpt2", "llama", "qwen2")
GREEDY = {"temperature": 0.0, "top_p": 1.0, "repetition_penalty": 1.0, "seed": 0}
SAMPLED = {"temperature": 0.8, "top_p": 0.92, "min_p": 0.1, "repetition_penalty": 1.2, "seed": 5}
COMMANDS = [
    Command("search", "red fox", words=9, quality=4),
    Command("image", "Poster für ein Café – 50% off <|text|>", quality=2),
    Command("search", "tea"),
    Command("image", "a lighthouse above grey waves", words=14),
    Command("search", "red fox", words=9, quality=4),
]
FOX = Command("search", "red fox", words=9, quality=4)


def save_student(kind: str, settings: Settings, folder: Path) -> Path:
    """An untrained student of an architecture, whose logits differ enough for texts to differ."""
    from transformers import AutoConfig, AutoModelForCausalLM

    start = initialise(settings, SPACE, TEXTS)
    model = start.model
    if kind != "gpt2":
        torch.manual_seed(1)
        shape = {"hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
        ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), start.tokenizer.eos_token_id)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, vocab_size=len(start.tokenizer), **shape, **ends))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
            parameter.mul_(1 if "norm" in name else 4)
    model.save_pretrained(folder)
    start.tokenizer.save_pretrained(folder)
    SPACE.save(folder)
    (folder / "recipe.json").write_text('{"name": "udrl"}')
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from conftest import small_params
    from udrl_pipeline.settings import load

    settings = load(small_params(tmp_path_factory.mktemp("params")), preset="", overrides={**TINY, "student.init_from": "scratch"})
    return {kind: save_student(kind, settings, tmp_path_factory.mktemp(kind)) for kind in KINDS}


@pytest.fixture(scope="module")
def slow(folders: dict[str, Path]) -> dict[str, Student]:
    return {kind: Student.load(folder, precise=True) for kind, folder in folders.items()}


@pytest.fixture(scope="module")
def exports(folders: dict[str, Path], slow: dict[str, Student], tmp_path_factory: pytest.TempPathFactory) -> dict[Any, FastStudent]:
    """By architecture and block (None: fp32)."""
    return {
        (kind, block): write_export(slow[kind], folders[kind], tmp_path_factory.mktemp("export"), block)
        for kind in KINDS
        for block in (None, 16)
    }


def texts(made: list[Generated]) -> list[tuple[Any, ...]]:
    return [(one.command, one.guidance, one.text, one.words, one.ids, one.finished, one.warnings) for one in made]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [
        GREEDY,
        {**GREEDY, "guidance": 1.0},
        {**GREEDY, "idea_guidance": 3.0},
        SAMPLED,
        {**SAMPLED, "min_p": 0.0, "length_guidance": 1.5, "idea_guidance": 2.0, "length_slack": None},
    ],
    ids=["greedy and guided", "greedy", "greedy, the idea guided too", "sampled", "sampled from all, all guided"],
)
def test_in_fp32_it_writes_what_transformers_writes(
    slow: dict[str, Student], exports: dict[Any, FastStudent], kind: str, options: dict[str, Any]
) -> None:
    wanted = slow[kind].generate(COMMANDS, **options, max_new_tokens=24)
    assert texts(exports[kind, None].generate(COMMANDS, **options, max_new_tokens=24)) == texts(wanted)
    assert len({one.text for one in wanted}) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_in_int8_the_scores_are_nearly_the_same(slow: dict[str, Student], exports: dict[Any, FastStudent], kind: str) -> None:
    from udrl_pipeline.student.fast import _Cache

    prompts = [[5, 6, 7, 8], [9, 10]]
    exact, small = (
        _Cache(exports[kind, block].model, prompts, 2, 2, exports[kind, block].description).prompts().copy() for block in (None, 16)
    )
    with torch.inference_mode():
        wanted = [slow[kind].model(torch.tensor([prompt])).logits[0, -1].numpy() for prompt in prompts]
    assert np.abs(exact - wanted).max() < 1e-4 * np.abs(wanted).max()
    assert 1e-4 < np.abs(small - wanted).max() / np.abs(wanted).max() < 0.1
    assert [np.corrcoef(a, b)[0, 1] > 0.98 for a, b in zip(small, wanted, strict=True)] == [True, True]


@pytest.mark.parametrize("block", [None, 16])
def test_a_text_does_not_depend_on_those_beside_it_nor_on_their_ends(exports: dict[Any, FastStudent], block: int | None) -> None:
    student = exports["llama", block]
    sampled = {**SAMPLED, "idea_guidance": 2.0}
    together = student.generate(COMMANDS, **sampled)
    alone = [student.generate([command], **sampled)[0] for command in COMMANDS[:4]]
    assert texts(together[:4]) == texts(alone)
    assert len({len(one.ids) for one in together}) > 1
    assert together[4].text != together[0].text, "the second of two equal commands has random numbers of its own"


def test_a_seed_of_its_own_for_each_command(exports: dict[Any, FastStudent]) -> None:
    student = exports["llama", 16]
    made = student.generate([FOX, FOX], **{**SAMPLED, "seed": [5, 6]})
    assert texts(made) == texts([student.generate([FOX], **{**SAMPLED, "seed": seed})[0] for seed in (5, 6)])
    assert made[0].text != made[1].text


@pytest.mark.parametrize("engine", ["transformers", "export"])
def test_a_stream_ends_with_what_generate_makes_and_its_pieces_are_that_text(
    slow: dict[str, Student], exports: dict[Any, FastStudent], engine: str
) -> None:
    student = slow["llama"] if engine == "transformers" else exports["llama", None]
    *pieces, made = student.stream(FOX, **SAMPLED)
    [wanted] = student.generate([FOX], **SAMPLED)
    assert isinstance(made, Generated)
    assert texts([made]) == texts([wanted])
    assert "".join(str(piece) for piece in pieces) == wanted.text
    assert len(pieces) > 3


@pytest.mark.parametrize("engine", ["transformers", "export"])
def test_who_leaves_a_stream_stops_the_writing(
    slow: dict[str, Student], exports: dict[Any, FastStudent], engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    student = slow["llama"] if engine == "transformers" else exports["llama", None]
    before = set(threading.enumerate())
    stream = student.stream(Command("search", "red fox"), **SAMPLED, max_new_tokens=400)
    assert isinstance(next(stream), str)
    stream.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=10)
    assert set(threading.enumerate()) <= before


@given(
    seed=st.integers(0, 2**31),
    temperature=st.sampled_from([0.0, 0.7, 1.3]),
    top_p=st.sampled_from([0.5, 0.92, 1.0]),
    min_p=st.sampled_from([0.0, 0.1, 0.5]),
    penalty=st.sampled_from([1.0, 1.3]),
    variants=st.integers(0, 3),
    known_only=st.booleans(),
)
def test_the_same_tokens_are_drawn_from_the_same_scores(
    seed: int, temperature: float, top_p: float, min_p: float, penalty: float, variants: int, known_only: bool
) -> None:
    """Twelve tokens of four texts: with so few tokens to choose from, loops, stutters, word limits, penalties and unknown words all come
    into play."""
    rng = np.random.default_rng(seed)
    rows, vocabulary, steps, end, silent = 4, 18, 12, 0, [1, 2]
    words = [
        "end",
        "<1>",
        "<2>",
        "x",
        "y",
        "z",
        "Ġd",
        "Ġe",
        "Ġf",
        *rng.choice(["Ġa", "ĠA", "Ġab", "Ġb", "c"], vocabulary - 9),
    ]  # something may always follow
    beginnings = Beginnings(words)
    pieces = [[6], [7], [8], *([int(first), *map(int, rest)] for first, rest in zip(range(9, 18), rng.integers(3, 6, (9, 2)), strict=True))]
    known = Lexicon([("".join(words[token] for token in piece).replace("Ġ", " "), piece) for piece in pieces], vocabulary, end)
    lexicons = [known, known.also([(" dx", [6, 3])]), known, known] if known_only else []
    weights = [(rng.random(rows) * 3).tolist() for _ in range(variants)]
    batch = Batch([], weights, [3, None, 5, 9], 1, rng.random((rows, steps)), steps, lexicons)
    ours = Drawing(batch, Sampling(temperature, top_p, min_p, penalty), beginnings, end, silent)
    theirs = Decoding(
        prompt_tokens=2, weights=batch.weights, temperature=temperature, top_p=top_p, min_p=min_p, repetition_penalty=penalty,
        silent=silent, governor=Governor(torch.tensor(beginnings.marked), end, batch.lengths, 1), levels=torch.from_numpy(batch.levels),
        beginnings=beginnings, lexicons=lexicons,
    )  # fmt: skip
    ids = torch.zeros((rows * (1 + variants), 2), dtype=torch.long)
    for _ in range(steps):
        scores = rng.normal(0, 3, (rows * (1 + variants), vocabulary)).astype(np.float32)
        wanted = theirs(ids, torch.from_numpy(scores.copy())).argmax(dim=1)
        assert ours(scores).tolist() == wanted[:rows].tolist()
        ids = torch.cat([ids, wanted[:, None]], dim=1)


def test_a_block_of_weights_is_exact_to_half_a_step_of_its_scale() -> None:
    weight = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    weight[:16, 1] = 0
    whole, scales = graph.quantised(weight, 16)
    assert (whole.shape, whole.dtype, scales.shape) == ((3, 3, 16), np.uint8, (9,))
    restored = ((whole.astype(np.float32) - 128) * scales.reshape(3, 3, 1)).reshape(3, 48)[:, :40].T
    assert np.abs(restored - weight).max() <= scales.max() / 2 + 1e-6
    assert (restored[:16, 1] == 0).all()


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "qwen3", "sliding_window": None}, "models of type qwen3 are not supported"),
        ({"model_type": "mistral", "sliding_window": 64}, "a sliding window of 64 tokens is not supported"),
        ({"model_type": "mistral", "sliding_window": None}, None),
        ({"model_type": "llama", "hidden_size": 32}, "heads of width 8 are not supported (a multiple of 16 is)"),
        ({"model_type": "llama"}, None),
    ],
)
def test_what_cannot_be_a_graph_says_why(config: dict[str, Any], reason: str | None) -> None:
    from types import SimpleNamespace

    shape = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64, "max_position_embeddings": 64}
    found = graph.refusal(SimpleNamespace(**shape | config))
    assert (found or "").startswith(reason or "")
    assert (found is None) == (reason is None)


def test_a_folder_says_itself_which_engine_it_is_for(folders: dict[str, Path], exports: dict[Any, FastStudent], tmp_path: Path) -> None:
    assert type(load_student(folders["gpt2"])) is Student
    fast = load_student(_copied(exports["gpt2", 16], folders["gpt2"], tmp_path))
    assert (type(fast), fast.recipe, fast.commanded) == (FastStudent, "udrl", True)
    assert fast.parameters == load_student(folders["gpt2"]).parameters


def _copied(student: FastStudent, folder: Path, target: Path) -> Path:
    """An export's folder anew."""
    write_export(Student.load(folder, precise=True), folder, target, 16)
    assert json.loads((target / "export.json").read_text()) == student.description
    return target


@pytest.mark.parametrize("damaged", [MODEL, "export.json", "tokenizer.json", "recipe.json", "commands.json"])
def test_a_damaged_export_is_a_typed_error(folders: dict[str, Path], exports: dict[Any, FastStudent], tmp_path: Path, damaged: str) -> None:
    folder = _copied(exports["gpt2", 16], folders["gpt2"], tmp_path)
    (folder / damaged).write_bytes(b"{")
    with pytest.raises(StudentError) as caught:
        FastStudent.load(folder)
    assert str(folder) in str(caught.value)


def test_an_idea_without_room_for_an_answer_is_a_typed_error(exports: dict[Any, FastStudent]) -> None:
    with pytest.raises(StudentError, match=r"an idea of \d+ tokens leaves no room for 96 more"):
        exports["gpt2", 16].generate([Command("search", "fox " * 300)], **GREEDY)


def test_the_same_student_gives_the_same_bytes(folders: dict[str, Path], tmp_path: Path, load: Callable[..., Settings]) -> None:
    for name in ("one", "two"):
        write_export(Student.load(folders["llama"], precise=True), folders["llama"], tmp_path / name, 16)
    assert (tmp_path / "one" / MODEL).read_bytes() == (tmp_path / "two" / MODEL).read_bytes()
