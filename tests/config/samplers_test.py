"""Samplers of an experiment."""

from experiments import digits_mixed
from spacetime.config import networks, parse, samplers


def test_sampling_shifts_with_the_size():
  experiment = parse.replace(
    parse.experiment(digits_mixed.get_config('tiny')), {'flow.reference': 5}
  )
  nets = networks.networks(experiment)
  settings = experiment.sampling

  def sigmas(latent, **values):
    changed = settings.with_changes(**values)
    return samplers.sampler(
      experiment, nets, changed, latent=latent
    ).schedule.sigmas

  # 20 tokens have twice the shift of 5.
  assert sigmas((2, 32, 80)) == sigmas(None, shift=2 * settings.shift)
  assert sigmas((1, 16, 80)) == sigmas(None) != sigmas((2, 32, 80))
  experiment = parse.replace(experiment, {'flow.reference': None})
  assert sigmas((2, 32, 80)) == sigmas(None)
