"""How models of the digits world are trained and sampled."""

from experiments.digits_data import MIXED

# How often which frames are given.
CONDITIONING = dict(
  none=0.75, first=0.1, first_k=0.05, last_k=0.04, ends=0.03, random=0.03
)
# Where a model shall go on for a minute: with noise on some that are given.
CONDITIONING_LONG = dict(
  none=0.6,
  first=0.1,
  first_k=0.1,
  last_k=0.05,
  ends=0.1,
  random=0.05,
  context_noise_prob=0.3,
  context_noise=0.3,
  independent_noise_prob=0.05,
)
# Where joins shall not be seen: more often, and at both ends.
CONDITIONING_JOINED = CONDITIONING_LONG | dict(
  none=0.35, first_k=0.15, last_k=0.1, ends=0.25, context_noise_prob=0.25
)
SAFE = dict(skip_nan=True, spike=0.0)  # steps that are left out: config.py


def get_conditioning(size: str) -> dict:
  """The `conditioning` section."""
  if size == 'bundled':
    return CONDITIONING_JOINED
  return CONDITIONING_LONG if size in MIXED else CONDITIONING


def get_flow(size: str) -> dict:
  """Of pixels: why 30, see BUILD_NOTES.md; that is for 80 tokens."""
  if size == 'latent':
    return dict(prediction='velocity', shift=3.0)
  if size == 'bundled':
    # Of patches a quarter as large; more of what is seen through less noise.
    return dict(prediction='sample', std=2.2, shift=24.0, reference=320)
  reference = dict(reference=80) if size in MIXED else {}
  return dict(prediction='sample', std=1.8, shift=30.0, **reference)


def get_events(size: str) -> dict:
  """What happens how often; on a GPU a hundred steps are seconds."""
  if size == 'bundled':
    often = dict(log_every=50, evaluate_every=2500, checkpoint_every=1000)
    return dict(**often, sheet_every=0)
  often = dict(evaluate_every=200, sheet_every=1000, checkpoint_every=200)
  return dict(log_every=1 if 'tiny' in size else 10, **often)


def get_sampling(size: str) -> dict:
  """As many evaluations of the network as a user waits for."""
  solver = dict(solver='heun', steps=16)
  if size == 'bundled':
    solver = dict(solver='unipc', steps=16)
  shift = 3.0 if size == 'latent' else 24.0
  return dict(**solver, guidance=2.5, interval=(0.0, 1.0), shift=shift)
