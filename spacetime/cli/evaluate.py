"""Measures what a model's videos show, beside the same of real clips.

  spacetime evaluate --checkpoint=digits --num=256 --out=runs/evaluation

Writes metrics.json, sheet.png (clips beside real ones) and chart.png. Of an
autoencoder it measures how well held-out clips are reconstructed (PSNR).
"""

from spacetime.cli import common, mesh
from spacetime.evaluation.settings import EvaluationSettings

common.define_flags(EvaluationSettings)
mesh.define_flags()


def main() -> None:
  """Flags -> measures, printed and written."""
  settings = EvaluationSettings(**common.flag_values(EvaluationSettings))
  from spacetime.evaluation import report  # here: it imports JAX

  print(report.write(settings, mesh=mesh.value()))
