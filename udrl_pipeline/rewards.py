"""What a row achieved: relevance by a sentence embedder, and from it a reward that repeating the intent does not maximise.

    fidelity   = min(relevance / fidelity_cap, 1)                 a hinge: staying with the idea, then nothing more to earn
    gain       = min(new concrete words / words / gain_cap, 1)    content that the intent did not hold, without praise
    repetition = repeated content words / content words
    reward     = w_f * fidelity + w_g * gain - w_r * repetition   weights of params.yaml

The shape (a hinge on fidelity, then gain over the raw input) follows Promptist's text analogue; it is this project's choice,
not a formula of arXiv 2502.09854. Relevance costs a model and is stored per row and scorer version; the rest is computed
when a dataset is labelled, so that a new weight or cap never scores a text again.
"""

import logging
import re
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from udrl_pipeline.errors import ClusterError, ModelError
from udrl_pipeline.models import digest_of, resolve
from udrl_pipeline.settings import RewardSettings, Settings
from udrl_pipeline.store.workspace import Workspace
from udrl_pipeline.versioning import content_hash

if TYPE_CHECKING:
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

#: Raised when the way a relevance is computed changes (pooling, rounding): older scores are then not used.
SCORER_REVISION = 1
#: Rows between two commits of scores.
CHUNK = 2048

_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")
_LETTERS = bytes(code if chr(code).isalpha() and code < 128 else ord(" ") for code in range(256))
STOP_WORDS = frozenset(
    """
    a about above across after again against all along also am among an and any are around as at away back be because been before
    behind being below beneath beside between beyond both but by can could did do does down during each else even ever every few for
    from had has have he her here hers him his how i if in inside into is it its just like many may me more most much must my near
    next no nor not of off on once one only onto or other our out over own per put same she should since so some still such than
    that the their them then there these they this those through throughout to too toward towards under until up upon us very via
    was we were what when where which while who whom whose why will with within without would yet you your
    """.split()  # noqa: SIM905
)


def words(text: str) -> int:
    """The length of a text in words, as it is commanded and reported: what stands between spaces."""
    return len(text.split())


def content_words(text: str) -> list[str]:
    """The words that carry content, in a form in which singular and plural are the same."""
    lower = text.lower()
    # without umlauts and apostrophes a word is a run of letters, and no regular expression is needed: a third of the time
    found = lower.encode().translate(_LETTERS).decode().split() if lower.isascii() and "'" not in lower else _WORD.findall(lower)
    return [stem for word in found if (stem := _content(word))]


@lru_cache(maxsize=1 << 17)  # the same words come again and again
def _content(word: str) -> str | None:
    """The stem of a word that carries content; None for the others."""
    stem = _stem(word)
    return None if word in STOP_WORDS or stem in STOP_WORDS else stem


def _stem(word: str) -> str:
    word = word.removesuffix("'s")
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


#: Words that praise instead of telling anything. They may stand in a text, but earn no gain: otherwise an intent with
#: "stunning, amazing masterpiece" behind it would be the best answer to everything.
PRAISE = frozenset(
    _stem(word)
    for word in """
    amazing artstation awesome beautiful beautifully beauty best breathtaking brilliant captivating charming dazzling delightful
    enchanting epic excellent exciting exquisite extraordinary fabulous fantastic gorgeous great hdr highly impressive incredible
    incredibly inspiring interesting lovely magical magnificent majestic marvelous marvellous masterpiece mesmerizing nice perfect
    perfectly phenomenal quality really remarkable special spectacular splendid striking stunning sublime super superb trending truly
    uhd ultra unforgettable unique wonderful wondrous
    """.split()  # noqa: SIM905
)


def new_content(intent: str, text: str) -> set[str]:
    """The content words of a text that its intent does not hold and that are no mere praise."""
    return set(content_words(text)) - _not_new(intent)


@lru_cache(maxsize=1 << 17)  # every idea has several texts
def _not_new(intent: str) -> frozenset[str]:
    return PRAISE.union(content_words(intent))


def repetition(text: str) -> float:
    """Share of the content words of a text that stand in it before, in [0, 1]."""
    content = content_words(text)
    return _repeated(content, set(content))


def _repeated(content: list[str], different: set[str]) -> float:
    return 1 - len(different) / len(content) if content else 0.0


def count(frame: pd.DataFrame) -> pd.DataFrame:
    """Add what a reward is made from to rows with `intent` and `text`: `words`, `added` (how many content words are new), `repeated`
    (see `repetition`) and `content` (the content words in the order of the alphabet, as one text)."""
    lengths, added, repeated, contents = list[int](), list[int](), list[float](), list[str]()
    for intent, text in zip(frame.intent.tolist(), frame.text.tolist(), strict=True):  # lists: a column hands its values out slowly
        content = content_words(text)
        different = set(content)
        lengths.append(words(text))
        added.append(len(different - _not_new(intent)))
        repeated.append(_repeated(content, different))
        contents.append(" ".join(sorted(content)))
    content_column = pd.Series(contents, frame.index, str)
    return frame.assign(
        words=np.array(lengths, int), added=np.array(added, int), repeated=np.array(repeated, float), content=content_column
    )


def label(frame: pd.DataFrame, settings: RewardSettings) -> pd.DataFrame:
    """Add `fidelity`, `gain`, `repetition` and `reward` to rows with `intent`, `text` and `relevance`; what was counted is not
    counted again."""
    counted = frame if "repeated" in frame else count(frame)
    fidelity = np.clip(frame.relevance.to_numpy() / settings.fidelity_cap, 0, 1)
    gain = np.clip(counted.added.to_numpy() / np.maximum(counted.words.to_numpy(), 1) / settings.gain_cap, 0, 1)
    repeated, weights = counted.repeated.to_numpy(), settings.weights
    reward = weights.fidelity * fidelity + weights.gain * gain - weights.repetition * repeated
    return frame.assign(fidelity=fidelity.round(4), gain=gain.round(4), repetition=repeated.round(4), reward=reward.round(4))


class Scorer:
    """The sentence embedder behind `relevance`; loaded on first use."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.version = scorer_version(settings)
        self._model: Any = None

    def embed(self, texts: Sequence[str]) -> "NDArray[np.float32]":
        """Unit vectors, shape [len(texts), dimensions]."""
        if self._model is None:
            from sentence_transformers import SentenceTransformer

            folder = resolve(self._settings.rewards.scorer, self._settings).folder
            try:
                self._model = SentenceTransformer(
                    str(folder), local_files_only=True, trust_remote_code=False, model_kwargs={"use_safetensors": True}
                )
            except (OSError, ValueError) as error:
                raise ModelError(f"cannot be loaded: {error}", where=str(folder), remedy="correct rewards.scorer in params.yaml") from error
        embedded = self._model.encode(list(texts), normalize_embeddings=True, batch_size=64, show_progress_bar=False)
        return np.asarray(embedded, dtype=np.float32)

    def relevance(self, intents: Sequence[str], texts: Sequence[str]) -> "NDArray[np.float64]":
        """Cosine similarity of each intent to its text, shape [len(texts)], rounded to 4 digits so that machines agree."""
        if not len(texts):
            return np.zeros(0)
        distinct = sorted(set(intents))
        vectors = dict(zip(distinct, self.embed(distinct), strict=True))
        cosines = (np.stack([vectors[intent] for intent in intents]) * self.embed(texts)).sum(axis=1)
        return np.round(cosines.astype(np.float64), 4)


def scorer_version(settings: Settings) -> str:
    """Identifies how relevance is measured: the scorer's weights and this module's way to use them."""
    return content_hash({"scorer": digest_of(settings.rewards.scorer, settings), "revision": SCORER_REVISION})


def score_missing(workspace: Workspace, frame: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Add `relevance` to rows, scoring only those without a score of the current scorer. Returns them and how many were scored."""
    version = scorer_version(workspace.settings)
    relevance = _stored(workspace, version, frame.row_key)
    places, began, done = np.flatnonzero(np.isnan(relevance)), time.monotonic(), 0
    missing = frame.iloc[places][["row_key", "intent", "text"]]
    score = _score_on_ray if workspace.settings.rewards.cluster == "ray" and len(missing) else _score_here
    with closing(score(workspace, missing)) as chunks:
        for scored in chunks:
            with workspace.database.writer() as connection:
                connection.register("scored", scored.assign(scorer_version=version))
                connection.execute("INSERT INTO scores SELECT row_key, scorer_version, relevance FROM scored ON CONFLICT DO NOTHING")
            done += len(scored)
            rate = done / (time.monotonic() - began)
            logger.info("scored %d of %d rows, %.0f rows/s, %.0f s left", done, len(missing), rate, (len(missing) - done) / rate)
    if done:
        relevance = _stored(workspace, version, frame.row_key)
    return frame.assign(relevance=relevance), len(missing)


def _score_here(workspace: Workspace, missing: pd.DataFrame) -> Generator[pd.DataFrame]:
    score = ScoreRows(workspace.settings)
    for start in range(0, len(missing), CHUNK):
        yield score(missing.iloc[start : start + CHUNK])


def _score_on_ray(workspace: Workspace, missing: pd.DataFrame) -> Generator[pd.DataFrame]:
    """The shards are the chunks of one process: what stands in a batch beside a text can change the last digits of its vector.

    Raises:
        ClusterError: A shard failed too often. What was scored is kept; without a score a row cannot be labelled, so none is left out.
    """
    from udrl_pipeline import cluster

    sizes = cluster.Sizes(CHUNK, CHUNK, _whole_chunks)
    for made in cluster.work_on(workspace, "scores", missing, partial(ScoreRows, workspace.settings), sizes, workspace.settings.ray.gpus):
        if made.rows is not None:
            yield made.rows
        if made.left:
            raise ClusterError(
                f"{len(made.left)} rows could not be scored, row {made.left[0]} and on: {made.reason}",
                where="rewards.cluster: ray",
                remedy="mend what it names and run again: what was scored is kept",
            )


def _whole_chunks(size: int, seconds: float) -> int:
    return CHUNK


class ScoreRows:
    """Rows (row_key, intent, text) -> their relevance (row_key, relevance)."""

    def __init__(self, settings: Settings) -> None:
        self._scorer = Scorer(settings)

    def __call__(self, rows: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame(
            {"row_key": rows.row_key.to_numpy(), "relevance": self._scorer.relevance(rows.intent.tolist(), rows.text.tolist())}
        )

    def close(self) -> None:
        del self._scorer


def _stored(workspace: Workspace, version: str, keys: pd.Series) -> "NDArray[np.float64]":
    """The relevance of each key, in the order of the keys; NaN where there is none."""
    wanted = pd.DataFrame({"row_key": keys.to_numpy(), "place": np.arange(len(keys))})
    with workspace.database.reader() as connection:
        connection.register("wanted", wanted)
        found = connection.execute(
            """SELECT relevance FROM wanted LEFT JOIN (SELECT row_key, relevance FROM scores WHERE scorer_version = ?) AS known
               USING (row_key) ORDER BY place""",
            [version],
        ).df()
    return found.relevance.to_numpy(dtype=float, na_value=np.nan).copy()
