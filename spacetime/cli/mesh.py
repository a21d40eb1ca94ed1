"""Flags of the mesh, of commands without a config: devices along each axis."""

from absl import flags

from spacetime.cli import help_pages

# As sharding.AXES, without the import of JAX.
HELP = {
  'data': 'Devices that share prompts, seeds and branches of guidance; -1 '
  'takes those that the other axes leave.',
  'fsdp': 'The same, each with a part of the weights.',
  'context': "Devices that share a clip's tokens, each with a part of the "
  'weights.',
  'tensor': 'Devices that share the attention heads and hidden layers.',
}


def define_flags() -> None:
  """Defines --mesh.AXIS for a command."""
  for axis, text in HELP.items():
    flags.DEFINE_integer(
      f'mesh.{axis}', None, f'{text} Example: --mesh.{axis}=2.'
    )
    help_pages.group('devices', f'mesh.{axis}')


def value() -> dict[str, int] | None:
  """The axes that are set; None if none is: the first device alone."""
  values = {axis: flags.FLAGS[f'mesh.{axis}'].value for axis in HELP}
  return {k: v for k, v in values.items() if v is not None} or None
