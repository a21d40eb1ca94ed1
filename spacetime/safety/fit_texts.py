"""Trains the classifier of prompts on the prompts in `training`.

  python -m spacetime.safety.fit_texts

Lines are 'category<TAB>prompt' or a harmless prompt; {NAME} stands for a word
of words.json, several of which make several prompts. Prints the errors of a
cross-validation in which variants of one line are never on both sides, then
writes the weights. Equal prompts give equal weights.
"""

import json
import os
import pathlib
import re

import numpy as np

from spacetime.safety import texts

TRAINING = pathlib.Path(__file__).parent / 'training'
CATEGORIES = ('sexual', 'violence/graphic', 'hate', 'self-harm', 'illicit')
VARIANTS = 4  # of a line with words to fill in
LANDMARKS, GAMMA, INVERSE_PENALTY = 900, 1.0, 40.0
FOLDS = 8


def prompts() -> list[tuple[int, str, int]]:
  """(category, prompt, line) of all training prompts; category 0 is
  harmless."""
  words = json.loads((TRAINING / 'words.json').read_text())
  result, line = [], 0
  for name in ('harmful', 'harmless', 'known_harmful', 'known_harmless'):
    for entry in (TRAINING / f'{name}.txt').read_text().splitlines():
      category, _, text = entry.rpartition('\t')
      # That minors are named is decided by a rule.
      category = category.removesuffix('/minors')
      number = 1 + CATEGORIES.index(category) if category else 0
      line += 1
      for variant in variants(text, words, line):
        result.append((number, variant, line))
  return result


def variants(text: str, words: dict[str, list[str]], line: int) -> list[str]:
  """A prompt with its words filled in, VARIANTS of it if it has any."""
  if '{' not in text:
    return [text]

  def fill(match: re.Match, variant: int) -> str:
    terms = words[match[1]]
    return terms[(line * 5 + variant * (len(terms) // VARIANTS)) % len(terms)]

  return [
    re.sub(r'\{(\w+)\}', lambda match, i=i: fill(match, i), text)
    for i in range(VARIANTS)
  ]


def fit(
  x_NE: np.ndarray,
  category_N: np.ndarray,
  *,
  gamma: float = GAMMA,
  inverse_penalty: float = INVERSE_PENALTY,
) -> dict[str, np.ndarray]:
  """Weights of kernel logistic regression, see texts.probabilities.

  Source: C. Williams and M. Seeger, Using the Nystroem method to speed up
    kernel machines (2001).
  """
  from sklearn import kernel_approximation, linear_model

  features = kernel_approximation.Nystroem(
    gamma=gamma, n_components=min(LANDMARKS, len(x_NE)), random_state=0
  )
  model = linear_model.LogisticRegression(C=inverse_penalty, max_iter=2000)
  model.fit(features.fit_transform(x_NE), category_N)
  return {
    'landmarks': features.components_.astype(np.float16),
    'gamma': np.float32(gamma),
    'kernel_to_logits': features.normalization_.T @ model.coef_.T,
    'bias': model.intercept_,
  }


def cross_validate(x_NE, category_N, line_N, **options) -> str:
  """False refusals and misses of prompts whose lines were left out."""
  from sklearn import model_selection

  score_N = np.zeros(len(x_NE))
  folds = model_selection.GroupKFold(FOLDS)
  for train, test in folds.split(x_NE, groups=line_N):
    weights = fit(x_NE[train], category_N[train], **options)
    score_N[test] = 1 - texts.probabilities(x_NE[test], weights)[:, 0]
  harmful = category_N > 0
  return '\n'.join(
    f'threshold {t}: refuses {np.mean(score_N[~harmful] >= t):.1%} of harmless '
    f'prompts, passes {np.mean(score_N[harmful] < t):.1%} of harmful ones'
    for t in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
  )


def main() -> None:
  """Trains, prints and writes."""
  _, embed = texts.embedder()
  category, text, line = zip(*prompts(), strict=True)
  x_NE = np.concatenate([embed(prompt) for prompt in text])
  category_N, line_N = np.array(category), np.array(line)
  print(f'{len(text)} prompts, {np.sum(category_N > 0)} of them harmful')
  print(cross_validate(x_NE, category_N, line_N))
  weights = fit(x_NE, category_N)
  path = pathlib.Path(str(texts.FOLDER / texts.WEIGHTS))
  temporary = path.with_suffix('.tmp.npz')
  np.savez_compressed(temporary, categories=np.array(CATEGORIES), **weights)
  os.replace(temporary, path)


if __name__ == '__main__':
  main()
